"""Figures of one set from the results of its items: sums over items divided once, with unit, n and standard error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from components.evaluation.likelihood import TokenStatistics
from components.uncertainty.calibration import expected_calibration_error, reliability_curve
from components.uncertainty.selective import area_under_risk_coverage, excess_area_under_risk_coverage


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
    """Sums over the item's gold tokens; what it was answered freely (`num_generated` tokens), None where it was not asked."""

    item_id: str
    kind: str
    nll_sum: float
    num_tokens: int
    num_correct: float
    num_scored: int
    drift_sum: float
    exact_match: int | None = None
    num_generated: int | None = None
    is_finished: bool | None = None
    answer: str | None = None
    expected: str | None = None


def item_figures(results: Sequence[ItemResult], brier_sums: Sequence[float]) -> dict[str, Figure]:
    """Ratios of sums over items. What no item of the set has at all (a final answer, a generated one) has no figure."""
    num_tokens = [result.num_tokens for result in results]
    num_scored = [result.num_scored for result in results]
    figures = {
        "nll": _ratio([result.nll_sum for result in results], num_tokens, "nats/token", False),
        "accuracy": _ratio([result.num_correct for result in results], num_scored, "share", True),
        "brier": _ratio(brier_sums, num_tokens, "0 to 2", False),
        "drift_kl": _ratio([result.drift_sum for result in results], num_tokens, "nats/token", False),
    }
    hits = [float(result.exact_match) for result in results if result.exact_match is not None]
    cut = [float(not result.is_finished) for result in results if result.is_finished is not None]
    if hits:
        figures["exact_match"] = _ratio(hits, [1] * len(hits), "share", True)
    if cut:
        figures["unfinished"] = _ratio(cut, [1] * len(cut), "share", False)
    return figures


def calibration_figures(tokens: TokenStatistics, num_bins: int) -> dict[str, Figure]:
    """Figures of all target tokens together, which no sum over items gives: they have no standard error."""
    error_N = 1 - tokens.is_correct.double()
    curve = reliability_curve(tokens.confidence, tokens.is_correct, num_bins)
    values = {
        "ece": expected_calibration_error(curve),
        "aurc": area_under_risk_coverage(tokens.confidence, error_N),
        "excess_aurc": excess_area_under_risk_coverage(tokens.confidence, error_N),
    }
    return {name: Figure(value, "share", len(error_N), None, False) for name, value in values.items()}


def drift_figure(drift_by_row: Sequence[Tensor]) -> Figure:
    """Mean KL(base || model) over tokens, rows being the independent units."""
    sums = [float(drift_N.double().sum()) for drift_N in drift_by_row]
    return _ratio(sums, [len(drift_N) for drift_N in drift_by_row], "nats/token", False)


def _ratio(numerators: Sequence[float], denominators: Sequence[int], unit: str, higher_is_better: bool) -> Figure:
    """Ratio of sums over items and its standard error by the delta method (items are the independent units)."""
    total = sum(denominators)
    if total == 0:
        return Figure(None, unit, 0, None, higher_is_better)
    ratio = sum(numerators) / total
    count = len(numerators)
    if count < 2:
        return Figure(ratio, unit, total, None, higher_is_better)
    residuals = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    error = math.sqrt(residuals * count / (count - 1)) / total
    return Figure(ratio, unit, total, error, higher_is_better)
