"""lm-evaluation-harness in this process: its own tasks, its own scoring of Hugging Face models, results per item.

It comes with `make install-lm-eval` only. Its caches (pickles) stay off, and no task may run code of a data set.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, InputError, ParamsError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 16
Sample = dict[str, Any]


def open_harness(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", batch_size: int = BATCH_SIZE) -> Any:
    """Its wrapper of a Hugging Face model, which shares our weights and our tokenizer."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise InputError(
            "evaluation.lm_eval_tasks names tasks, but lm-evaluation-harness is not installed. Install it: make install-lm-eval"
        ) from None
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def run_tasks(
    harness: Any, names: Sequence[str], folder: Path | None, *, limit: int | None = None, num_fewshot: int | None = None
) -> dict[str, list[Sample]]:
    """Task -> one sample per document, in their order; a group gives its tasks. `folder` holds YAML tasks of the user's.

    Where a task reads its answers in several ways (gsm8k: strict-match, flexible-extract) the first of them counts.
    """
    from lm_eval import simple_evaluate

    manager = _task_manager(names, folder)
    try:
        tasks = manager.load(list(names))["tasks"]
        _refuse_long_answers(tasks, harness)
        found = simple_evaluate(
            model=harness,
            tasks=list(tasks.values()),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"evaluation.lm_eval_tasks {list(names)}: a data set cannot be loaded ({str(error)[:200]}). "
            "Named tasks need the Hugging Face hub; without network take YAML tasks on files of yours: docs/lm-eval.md"
        ) from error
    return {name: _one_per_document(tasks[name], of_task) for name, of_task in found["samples"].items()}


def _refuse_long_answers(tasks: Mapping[str, Any], harness: Any) -> None:
    """The harness itself stops with an assertion, after the tasks before have been scored."""
    from lm_eval.models.utils import normalize_gen_kwargs

    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        longest = normalize_gen_kwargs(dict(task.config.generation_kwargs or {}), harness.max_gen_toks)["max_gen_toks"]
        if longest >= harness.max_length:
            raise ParamsError(
                f"evaluation.lm_eval_tasks: {name} lets an answer have {longest} tokens, the model reads {harness.max_length} in "
                "all. Lower generation_kwargs.max_gen_toks in its YAML, or take the task out"
            )


def _one_per_document(task: Any, samples: Sequence[Sample]) -> list[Sample]:
    """Those of the task's first filter, each with its kind of request and the number of its right option."""
    kept = sorted((one for one in samples if one["filter"] == samples[0]["filter"]), key=lambda one: one["doc_id"])
    is_choice = task.OUTPUT_TYPE == "multiple_choice"
    return [
        {**one, "output_type": task.OUTPUT_TYPE, "right": _right_option(task, one["doc"]) if is_choice else None} for one in kept
    ]


def _right_option(task: Any, doc: dict[str, Any]) -> int | None:
    """As the task's own code tells it: a number or the option's text, and from the context where each option has its own.
    None where no single one is right."""
    options = task.doc_to_choice(doc)
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(right, list) and len(right) == 1:
        right = right[0]
    if isinstance(right, str):
        right = options.index(right) if right in options else None
    return right if isinstance(right, int) and 0 <= right < len(options) else None


def _task_manager(names: Sequence[str], folder: Path | None) -> Any:
    """With the folder alone where it has all of them: reading the harness's own fifteen thousand tasks takes eleven seconds."""
    from lm_eval.tasks import TaskManager

    path = None if folder is None else str(folder)
    if path is not None and folder is not None and any(folder.rglob("*.yaml")):
        manager = TaskManager(include_path=path, include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=path)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"; it has {', '.join(near)}" if near else ""
            raise ParamsError(
                f"evaluation.lm_eval_tasks: lm-evaluation-harness has no task {name!r}{hint}. "
                f"Correct the name, or put its YAML into {folder or 'evaluation.lm_eval_tasks_path'}"
            )
    return manager
