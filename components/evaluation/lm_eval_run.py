"""lm-evaluation-harness in this process: its own tasks, its own scoring of Hugging Face models, results per item.

It comes with `make install-lm-eval` only. Its caches (pickles) stay off, and no task may run code of a data set.
"""

import difflib
from collections.abc import Sequence
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
    """Task -> its samples in the order of its documents; a group gives its tasks. `folder` holds YAML tasks of the user's."""
    from lm_eval import simple_evaluate

    manager = _task_manager(names, folder)
    try:
        found = simple_evaluate(
            model=harness,
            tasks=list(names),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"evaluation.lm_eval_tasks {list(names)}: a data set cannot be loaded ({str(error).splitlines()[0][:200]}). "
            "Named tasks need the Hugging Face hub; without network take YAML tasks on files of yours: docs/lm-eval.md"
        ) from error
    samples = {name: sorted(of_task, key=lambda sample: sample["doc_id"]) for name, of_task in found["samples"].items()}
    return {name: [_with_kind(sample, found["configs"][name]) for sample in one] for name, one in samples.items()}


def _with_kind(sample: Sample, config: dict[str, Any]) -> Sample:
    """The kind of request and which option is right: a task with an option per context names that where others have the text."""
    right = sample["target"] if isinstance(sample["target"], int) else sample["doc"].get(str(config.get("doc_to_text")))
    return {**sample, "output_type": str(config["output_type"]), "right": right if isinstance(right, int) else 0}


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
