"""All figures of one model: per set nll, accuracy, answers, calibration, selective prediction, drift; uncertainty; items.

Figures are sums over tokens or items, divided once. Each carries unit, n, standard error and whether higher is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from components.errors import ModelError
from components.evaluation.answers import answer_items, final_answer, is_same_answer
from components.evaluation.figures import Figure, ItemResult, calibration_figures, drift_figure, item_figures
from components.evaluation.generation import Answer
from components.evaluation.headline import OOD_PREFIX
from components.evaluation.items import EvaluationItem, EvaluationSet, ItemRow
from components.evaluation.likelihood import TokenStatistics, join, score_rows
from components.evaluation.prefix_sharing import score_options
from components.evaluation.uncertainty_table import uncertainty_against_truth
from components.params import EvaluationParams
from components.uncertainty.calibration import reliability_curve
from components.uncertainty.selective import risk_coverage_curve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_CURVE_POINTS = 50
MAX_PROMPT_ROWS = 64
"""Of each set, for the drift at its prompts: scored again, at every position of the prompt."""
NO_TOKENS = TokenStatistics(*[torch.zeros(0)] * 8)


def evaluate_sets(
    model: nn.Module,
    base: nn.Module,
    sets: Mapping[str, Sequence[EvaluationItem]],
    params: EvaluationParams,
    reference: nn.Module | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> dict[str, dict[str, Any]]:
    """Set name -> figures, reliability and risk-coverage curves, uncertainty against the truth (or, where that is not known,
    against the reference, a model that has learned the task), item results. All models are only read; the tokenizer is needed
    where items are to be answered freely."""
    for one in (model, base, *([] if reference is None else [reference])):
        one.eval()
    return {name: _evaluate_set(model, base, name, items, params, reference, tokenizer) for name, items in sets.items()}


def evaluate_lm_eval_sets(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", params: EvaluationParams, device: torch.device
) -> dict[str, dict[str, Any]]:
    """The tasks of lm-evaluation-harness that params name, as further OOD sets; nothing is imported where none is named."""
    if not params.lm_eval_tasks:
        return {}
    from components.evaluation.lm_eval_sets import evaluate_lm_eval

    results: dict[str, dict[str, Any]] = evaluate_lm_eval(model, tokenizer, params, device)
    return {f"{OOD_PREFIX}lm_eval/{task}": result for task, result in results.items()}


def _evaluate_set(
    model: nn.Module,
    base: nn.Module,
    name: str,
    items: Sequence[EvaluationItem],
    params: EvaluationParams,
    reference: nn.Module | None,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> dict[str, Any]:
    gold_rows = [row for item in items for row in item.gold_rows]
    scored = score_rows(model, base, gold_rows, params.batch_tokens)
    tokens = join(scored) if scored else NO_TOKENS
    in_order = iter(scored)
    gold = [next(in_order) if item.rows else NO_TOKENS for item in items]
    options = _option_nlls(model, items, params.batch_tokens)
    _refuse_not_finite(tokens, [nll for nlls in options for nll in nlls], name)
    answers = _answers(model, tokenizer, items, params, name)
    results = [_item_result(*one) for one in zip(items, gold, options, answers, strict=True)]
    figures = item_figures(results, [float(one.brier.double().sum()) for one in gold])
    figures |= calibration_figures(tokens, params.num_ece_bins) | _prompt_figures(model, base, items, params.batch_tokens)
    of_reference = None
    if reference is not None and scored:
        of_reference = join(score_rows(reference, reference, gold_rows, params.batch_tokens))
    return {
        "task": items[0].kind if items else None,
        "left_out": items.left_out if isinstance(items, EvaluationSet) else {},
        "num_items": len(items),
        "metrics": {metric: asdict(figure) for metric, figure in figures.items()},
        **_curves(tokens, params.num_ece_bins),
        "uncertainty": uncertainty_against_truth(tokens, of_reference),
        "items": [asdict(result) for result in results],
    }


def _option_nlls(model: nn.Module, items: Sequence[EvaluationItem], batch_tokens: int) -> list[list[float]]:
    """Of every choice the summed nll of each option, all of them in one pass (equal options must tie); [] of other items."""
    rows = [row for item in items if item.kind == "choice" for row in item.rows]
    nlls = iter([option.nll_sum for option in score_options(model, rows, batch_tokens)])
    return [[next(nlls) for _ in item.rows] if item.kind == "choice" else [] for item in items]


def _refuse_not_finite(tokens: TokenStatistics, option_nlls: Sequence[float], name: str) -> None:
    """Comparisons with NaN are all false, so a broken model would pass for a good one wherever the first option is right."""
    num_bad = int((~(tokens.nll.isfinite() & tokens.drift_kl.isfinite())).sum())
    bad_options = sum(not math.isfinite(nll) for nll in option_nlls)
    if num_bad or bad_options:
        where = f"{num_bad} of {len(tokens.nll)} tokens" + (f" and {bad_options} options" if bad_options else "")
        raise ModelError(
            f"{name}: the model's nll or its drift from the base is not finite on {where}. "
            "Its weights have diverged: train it again with a lower learning rate (dvc exp run -S training.learning_rate=...)"
        )


def _answers(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    items: Sequence[EvaluationItem],
    params: EvaluationParams,
    name: str,
) -> list[Answer | None]:
    if all(item.prompt is None for item in items):
        return [None] * len(items)
    assert tokenizer is not None, "items that are answered freely need the tokenizer"
    return answer_items(cast("PreTrainedModel", model), tokenizer, items, params, name)


def _item_result(item: EvaluationItem, gold: TokenStatistics, options: list[float], answer: Answer | None) -> ItemResult:
    correct, scored = _count_correct(item, gold, options, answer)
    expected = None if item.prompt is None else item.prompt.expected
    hit = None if answer is None or expected is None else int(is_same_answer(final_answer(answer.text), expected))
    return ItemResult(
        item_id=item.item_id,
        kind=item.kind,
        nll_sum=float(gold.nll.double().sum()),
        num_tokens=len(gold.nll),
        num_correct=correct,
        num_scored=scored,
        drift_sum=float(gold.drift_kl.double().sum()),
        exact_match=hit,
        num_generated=None if answer is None else len(answer.input_ids),
        is_finished=None if answer is None else answer.is_finished,
        answer=None if answer is None else answer.text,
        expected=expected,
    )


def _count_correct(item: EvaluationItem, gold: TokenStatistics, options: list[float], answer: Answer | None) -> tuple[float, int]:
    """How much of the item is right, and out of how much; components.evaluation.items says what each kind counts."""
    if item.kind == "choice":
        is_best = [nll == min(options) for nll in options]
        return is_best[item.gold] / sum(is_best), 1  # a tie is a guess
    if item.kind == "exact":
        return float(gold.is_correct.all()), 1
    if item.kind == "rules":
        assert item.prompt is not None and answer is not None
        return float(all(rule.is_kept(answer.text) for rule in item.prompt.rules)), 1
    is_scored_N = is_determined(gold)
    return float(gold.is_correct[is_scored_N].sum()), int(is_scored_N.sum())


def is_determined(tokens: TokenStatistics) -> Tensor:
    """Tokens on which a perfect model would be right: where the true law is known, those it fixes; else all of them."""
    return tokens.true_entropy.isnan() | (tokens.true_entropy == 0)


def _prompt_figures(model: nn.Module, base: nn.Module, items: Sequence[EvaluationItem], batch_tokens: int) -> dict[str, Figure]:
    """Drift where conversations are not the assistant's; no figure of sets that have no such tokens."""
    rows = [row for item in items[:MAX_PROMPT_ROWS] if item.kind == "tokens" for row in item.rows]
    prompts = [ItemRow(row.input_ids, [False, *(not is_target for is_target in row.is_target[1:])]) for row in rows]
    prompts = [row for row in prompts if any(row.is_target)]
    if not prompts:
        return {}
    return {"prompt_drift_kl": drift_figure([one.drift_kl for one in score_rows(model, base, prompts, batch_tokens)])}


def _curves(tokens: TokenStatistics, num_bins: int) -> dict[str, Any]:
    if not len(tokens.nll):
        return {"reliability": [], "risk_coverage": []}
    points = risk_coverage_curve(tokens.confidence, 1 - tokens.is_correct.double(), MAX_CURVE_POINTS)
    return {
        "reliability": [asdict(bin_) for bin_ in reliability_curve(tokens.confidence, tokens.is_correct, num_bins)],
        "risk_coverage": [asdict(point) for point in points],
    }
