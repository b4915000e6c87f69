"""All figures of one model: per set nll, accuracy, calibration, drift; uncertainty scores against the truth; results per item.

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
from components.params import EvaluationParams
from components.uncertainty.calibration import expected_calibration_error, rank_correlation, reliability_curve


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
    model: nn.Module, base: nn.Module, sets: Mapping[str, Sequence[EvaluationItem]], params: EvaluationParams
) -> dict[str, dict[str, Any]]:
    """Set name -> figures, reliability curve, uncertainty against the truth, item results. Both models are only read."""
    model.eval()
    base.eval()
    return {name: _evaluate_set(model, base, name, items, params) for name, items in sets.items()}


def _evaluate_set(
    model: nn.Module, base: nn.Module, name: str, items: Sequence[EvaluationItem], params: EvaluationParams
) -> dict[str, Any]:
    rows = [row for item in items for row in item.rows]
    scored = iter(score_rows(model, base, rows, params.batch_tokens))
    by_item = [[next(scored) for _ in item.rows] for item in items]
    gold = [statistics[item.gold] for item, statistics in zip(items, by_item, strict=True)]
    tokens = join(gold)
    _refuse_not_finite(join([statistics for one in by_item for statistics in one]), name)
    results = [_item_result(item, statistics) for item, statistics in zip(items, by_item, strict=True)]
    curve = reliability_curve(tokens.confidence, tokens.is_correct, params.num_ece_bins)
    drift_sums = [float(one.drift_kl.double().sum()) for one in gold]
    figures = _figures(results, drift_sums, expected_calibration_error(curve))
    return {
        "metrics": {metric: asdict(figure) for metric, figure in figures.items()},
        "reliability": [asdict(bin_) for bin_ in curve],
        "uncertainty": uncertainty_against_truth(tokens),
        "items": [asdict(result) for result in results],
    }


def _refuse_not_finite(tokens: TokenStatistics, name: str) -> None:
    """Comparisons with NaN are all false, so a broken model would pass for a good one wherever the first option is right."""
    num_bad = int((~(tokens.nll.isfinite() & tokens.drift_kl.isfinite())).sum())
    if num_bad:
        raise ModelError(
            f"{name}: the model's nll or its drift from the base is not finite on {num_bad} of {len(tokens.nll)} tokens. "
            "Its weights have diverged: train it again with a lower learning rate (dvc exp run -S training.learning_rate=...)"
        )


def _item_result(item: EvaluationItem, statistics: list[TokenStatistics]) -> ItemResult:
    gold = statistics[item.gold]
    if item.kind == "choice":
        nlls = [float(option.nll.double().sum()) for option in statistics]
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


def _figures(results: list[ItemResult], drift_sums: list[float], ece: float | None) -> dict[str, Figure]:
    num_tokens = [result.num_tokens for result in results]
    num_scored = [result.num_scored for result in results]
    nll = _ratio([result.nll_sum for result in results], num_tokens)
    accuracy = _ratio([result.num_correct for result in results], num_scored)
    drift = _ratio(drift_sums, num_tokens)
    return {
        "nll": Figure(nll[0], "nats/token", sum(num_tokens), nll[1], False),
        "accuracy": Figure(accuracy[0], "share", sum(num_scored), accuracy[1], True),
        "ece": Figure(ece, "share", sum(num_tokens), None, False),
        "drift_kl": Figure(drift[0], "nats/token", sum(num_tokens), drift[1], False),
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


def uncertainty_against_truth(tokens: TokenStatistics) -> dict[str, Any] | None:
    """How scores rank the true epistemic (KL(truth || model)) and aleatoric (entropy of the truth) uncertainty; else None.

    Only tokens whose law is known count. Realised nll follows the first early in training and the second late.
    """
    known_N = ~tokens.true_entropy.isnan()
    if not bool(known_N.any()):
        return None
    known = tokens.keep(known_N)
    scores = {"student_nll": known.nll, "entropy": known.entropy}
    return {
        "num_tokens": int(known_N.sum()),
        "mean_true_kl": float(known.true_kl.mean()),
        "mean_true_entropy": float(known.true_entropy.mean()),
        "rank_correlation": {
            name: {"epistemic": rank_correlation(score, known.true_kl), "aleatoric": rank_correlation(score, known.true_entropy)}
            for name, score in scores.items()
        },
    }
