"""Tasks of lm-evaluation-harness as OOD sets: results per item, so that intervals, corrections and the gate take them in.

The harness scores; we read. Of a choice and of a completion the nll of the right answer is kept; of a generated answer whether it
matches; of running text its nll. What it does not tell (calibration, drift) has no figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from components.artifacts import ROOT
from components.errors import DataError
from components.evaluation.figures import ItemResult, item_figures
from components.evaluation.lm_eval_run import Sample, open_harness, run_tasks
from components.params import EvaluationParams

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MATCHES = ("acc", "exact_match", "acc_norm", "em")
"""Of a sample's metrics the first of these says whether it is right."""


def evaluate_lm_eval(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", params: EvaluationParams, device: "torch.device"
) -> dict[str, dict[str, Any]]:
    """Task -> set result, of the first `max_items_per_set` documents of each. The model is on its device already."""
    assert next(model.parameters()).device.type == device.type
    harness = open_harness(model, tokenizer)
    samples = run_tasks(
        harness,
        params.lm_eval_tasks,
        ROOT / params.lm_eval_tasks_path,
        limit=params.max_items_per_set,
        num_fewshot=params.lm_eval_num_fewshot,
    )
    return {task: set_result(task, of_task, harness) for task, of_task in samples.items()}


def set_result(task: str, samples: Sequence[Sample], harness: Any) -> dict[str, Any]:
    if not samples:
        raise DataError(f"evaluation.lm_eval_tasks: {task} has no document. Remove it, or see what its YAML says of its splits")
    results = [item_result(task, sample, harness) for sample in samples]
    figures = item_figures(results, [0.0] * len(results))
    told = {name: asdict(figure) for name, figure in figures.items() if name in ("nll", "accuracy", "exact_match")}
    return {
        "task": "lm_eval",
        "left_out": {},
        "num_items": len(results),
        "metrics": told,
        "reliability": [],
        "risk_coverage": [],
        "uncertainty": None,
        "items": [asdict(result) for result in results],
    }


def item_result(task: str, sample: Sample, harness: Any) -> ItemResult:
    """One document: what of it is right, and the nll of its right answer where likelihoods were asked for."""
    kind = sample["output_type"]
    match = next((float(sample[name]) for name in MATCHES if isinstance(sample.get(name), int | float | bool)), None)
    nll, num_tokens, answer = 0.0, 0, None
    if kind == "generate_until":
        answer = str(sample["filtered_resps"][0])
    elif kind == "loglikelihood_rolling":
        nll, num_tokens = -_likelihood(sample["filtered_resps"][0]), len(harness.tok_encode(asked_pairs(sample)[0][0]))
    else:
        place = sample["right"] if kind == "multiple_choice" else 0
        if place is not None:
            nll, num_tokens = -_likelihood(sample["filtered_resps"][place]), _num_tokens(asked_pairs(sample)[place], harness)
    return ItemResult(
        item_id=f"{task}:{sample['doc_id']}",
        kind="lm_eval",
        nll_sum=nll,
        num_tokens=num_tokens,
        num_correct=match or 0.0,
        num_scored=int(match is not None),
        drift_sum=0.0,
        exact_match=int(match) if kind == "generate_until" and match in (0.0, 1.0) else None,
        answer=answer,
        expected=str(sample["target"]) if kind == "generate_until" else None,
    )


def _likelihood(response: Any) -> float:
    """A pair (logprob, is greedy), or the logprob alone."""
    return float(response[0] if isinstance(response, list | tuple) else response)


def asked_pairs(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked: (context, continuation) of each request; the harness writes them as numbered entries."""
    asked = sample["arguments"]
    entries = asked.values() if isinstance(asked, Mapping) else asked
    return [tuple(entry.values()) if isinstance(entry, Mapping) else tuple(entry) for entry in entries]


def _num_tokens(pair: tuple[str, str], harness: Any) -> int:
    context, continuation = pair
    if not context:
        return len(harness.tok_encode(continuation, add_special_tokens=False))
    return len(harness._encode_pair(context, continuation)[1])
