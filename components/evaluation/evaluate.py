"""All figures of one model: per set nll, accuracy, calibration, selective prediction, drift; uncertainty; results per item.

Figures are sums over tokens or items, divided once. Each carries unit, n, standard error and whether higher is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from components.errors import ModelError
from components.evaluation.items import EvaluationItem
from components.evaluation.likelihood import TokenStatistics, join, score_rows
from components.evaluation.prefix_sharing import score_options
from components.evaluation.uncertainty_table import uncertainty_against_truth
from components.params import EvaluationParams
from components.uncertainty.calibration import expected_calibration_error, reliability_curve
from components.uncertainty.selective import (
    area_under_risk_coverage,
    excess_area_under_risk_coverage,
    risk_coverage_curve,
)

MAX_CURVE_POINTS = 50


@dataclass(frozen=True)
class Figure:
    """One number for people and machines; `value` is None where it does not exist (the reason is in docs/evaluation.md)."""

    value: float | None
    unit: str
    num: int
    standard_error: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class ItemResult:
    item_id: str
    nll_sum: float
    num_tokens: int
    num_correct: float
    num_scored: int


def evaluate_sets(
    model: nn.Module,
    base: nn.Module,
    sets: Mapping[str, Sequence[EvaluationItem]],
    params: EvaluationParams,
    reference: nn.Module | None = None,
) -> dict[str, dict[str, Any]]:
    """Set name -> figures, reliability and risk-coverage curves, uncertainty against the truth (or, where that is not known,
    against the reference, a model that has learned the task), item results. All models are only read."""
    for one in (model, base, *([] if reference is None else [reference])):
        one.eval()
    return {name: _evaluate_set(model, base, name, items, params, reference) for name, items in sets.items()}


def _evaluate_set(
    model: nn.Module,
    base: nn.Module,
    name: str,
    items: Sequence[EvaluationItem],
    params: EvaluationParams,
    reference: nn.Module | None,
) -> dict[str, Any]:
    gold = score_rows(model, base, [item.rows[item.gold] for item in items], params.batch_tokens)
    choices = [row for item in items if item.kind == "choice" for row in item.rows]  # gold again: ties need one way of counting
    option_nlls = [option.nll_sum for option in score_options(model, choices, params.batch_tokens)]
    tokens = join(gold)
    _refuse_not_finite(tokens, option_nlls, name)
    nlls = iter(option_nlls)
    results = [
        _item_result(item, one, [next(nlls) for _ in item.rows] if item.kind == "choice" else [])
        for item, one in zip(items, gold, strict=True)
    ]
    curve = reliability_curve(tokens.confidence, tokens.is_correct, params.num_ece_bins)
    error_N = 1 - tokens.is_correct.double()
    figures = {
        **_figures(results, gold),
        **_calibration_figures(tokens.confidence, error_N, expected_calibration_error(curve)),
    }
    of_reference = None
    if reference is not None:
        gold_rows = [item.rows[item.gold] for item in items]
        of_reference = join(score_rows(reference, reference, gold_rows, params.batch_tokens))
    return {
        "metrics": {metric: asdict(figure) for metric, figure in figures.items()},
        "reliability": [asdict(bin_) for bin_ in curve],
        "risk_coverage": [asdict(point) for point in risk_coverage_curve(tokens.confidence, error_N, MAX_CURVE_POINTS)],
        "uncertainty": uncertainty_against_truth(tokens, of_reference),
        "items": [asdict(result) for result in results],
    }


def _refuse_not_finite(tokens: TokenStatistics, option_nlls: list[float], name: str) -> None:
    """Comparisons with NaN are all false, so a broken model would pass for a good one wherever the first option is right."""
    num_bad = int((~(tokens.nll.isfinite() & tokens.drift_kl.isfinite())).sum())
    num_bad += sum(not math.isfinite(nll) for nll in option_nlls)
    if num_bad:
        raise ModelError(
            f"{name}: the model's nll or its drift from the base is not finite on "
            f"{num_bad} of {len(tokens.nll) + len(option_nlls)} tokens and options. "
            "Its weights have diverged: train it again with a lower learning rate (dvc exp run -S training.learning_rate=...)"
        )


def _item_result(item: EvaluationItem, gold: TokenStatistics, nlls: list[float]) -> ItemResult:
    if item.kind == "choice":
        is_best = [nll == min(nlls) for nll in nlls]
        correct, scored = is_best[item.gold] / sum(is_best), 1  # a tie is a guess
    elif item.kind == "exact":
        correct, scored = float(gold.is_correct.all()), 1
    else:
        is_scored_N = is_determined(gold)
        correct, scored = float(gold.is_correct[is_scored_N].sum()), int(is_scored_N.sum())
    return ItemResult(item.item_id, float(gold.nll.double().sum()), len(gold.nll), correct, scored)


def is_determined(tokens: TokenStatistics) -> Tensor:
    """Tokens on which a perfect model would be right: where the true law is known, those it fixes; else all of them."""
    return tokens.true_entropy.isnan() | (tokens.true_entropy == 0)


def _figures(results: list[ItemResult], gold: list[TokenStatistics]) -> dict[str, Figure]:
    """Ratios of sums over items."""
    num_tokens = [result.num_tokens for result in results]
    num_scored = [result.num_scored for result in results]
    nll = _ratio([result.nll_sum for result in results], num_tokens)
    accuracy = _ratio([result.num_correct for result in results], num_scored)
    drift = _ratio([float(one.drift_kl.double().sum()) for one in gold], num_tokens)
    brier = _ratio([float(one.brier.double().sum()) for one in gold], num_tokens)
    return {
        "nll": Figure(nll[0], "nats/token", sum(num_tokens), nll[1], False),
        "accuracy": Figure(accuracy[0], "share", sum(num_scored), accuracy[1], True),
        "brier": Figure(brier[0], "0 to 2", sum(num_tokens), brier[1], False),
        "drift_kl": Figure(drift[0], "nats/token", sum(num_tokens), drift[1], False),
    }


def _calibration_figures(confidence_N: Tensor, error_N: Tensor, ece: float | None) -> dict[str, Figure]:
    """Figures of all target tokens together, which no sum over items gives: they have no standard error."""
    area = area_under_risk_coverage(confidence_N, error_N)
    excess = excess_area_under_risk_coverage(confidence_N, error_N)
    return {
        name: Figure(value, "share", len(error_N), None, False)
        for name, value in (("ece", ece), ("aurc", area), ("excess_aurc", excess))
    }


def _ratio(numerators: list[float], denominators: Sequence[float]) -> tuple[float | None, float | None]:
    """Ratio of sums over items and its standard error by the delta method (items are the independent units)."""
    total = float(sum(denominators))
    if total == 0:
        return None, None
    ratio = sum(numerators) / total
    count = len(numerators)
    if count < 2:
        return ratio, None
    residuals = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    return ratio, math.sqrt(residuals * count / (count - 1)) / total
