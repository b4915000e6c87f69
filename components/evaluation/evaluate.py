"""All figures of one model: per set nll, accuracy, calibration, drift; uncertainty scores against the truth; results per item.

Figures are sums over tokens or items, divided once. Each carries unit, n, standard error and whether higher is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
    return {name: _evaluate_set(model, base, items, params) for name, items in sets.items()}


def _evaluate_set(model: nn.Module, base: nn.Module, items: Sequence[EvaluationItem], params: EvaluationParams) -> dict[str, Any]:
    rows = [row for item in items for row in item.rows]
    scored = iter(score_rows(model, base, rows, params.batch_tokens))
    by_item = [[next(scored) for _ in item.rows] for item in items]
    results = [_item_result(item, statistics) for item, statistics in zip(items, by_item, strict=True)]
    gold = join([statistics[item.gold] for item, statistics in zip(items, by_item, strict=True)])
    curve = reliability_curve(*_calibration_tokens(gold), params.num_ece_bins)
    return {
        "metrics": {name: asdict(figure) for name, figure in _figures(results, gold, expected_calibration_error(curve)).items()},
        "reliability": [asdict(bin_) for bin_ in curve],
        "uncertainty": uncertainty_against_truth(gold),
        "items": [asdict(result) for result in results],
    }


def _item_result(item: EvaluationItem, statistics: list[TokenStatistics]) -> ItemResult:
    gold = statistics[item.gold]
    if item.kind == "choice":
        best = min(range(len(statistics)), key=lambda option: float(statistics[option].nll.sum()))
        correct, scored = float(best == item.gold), 1
    elif item.kind == "exact":
        correct, scored = float(gold.is_correct.all()), 1
    else:
        is_scored_N = is_determined(gold)
        correct, scored = float(gold.is_correct[is_scored_N].sum()), int(is_scored_N.sum())
    return ItemResult(item.item_id, float(gold.nll.double().sum()), len(gold.nll), correct, scored)


def is_determined(tokens: TokenStatistics) -> Tensor:
    """Tokens on which a perfect model would be right: where the true law is known, those it fixes; else all of them."""
    return tokens.true_entropy.isnan() | (tokens.true_entropy == 0)


def _calibration_tokens(tokens: TokenStatistics) -> tuple[Tensor, Tensor]:
    return tokens.confidence, tokens.is_correct


def _figures(results: list[ItemResult], gold: TokenStatistics, ece: float | None) -> dict[str, Figure]:
    num_tokens = sum(result.num_tokens for result in results)
    num_scored = sum(result.num_scored for result in results)
    nll = _ratio([result.nll_sum for result in results], [result.num_tokens for result in results])
    accuracy = _ratio([result.num_correct for result in results], [result.num_scored for result in results])
    drift = float(gold.drift_kl.mean())
    return {
        "nll": Figure(nll[0], "nats/token", num_tokens, nll[1], False),
        "accuracy": Figure(accuracy[0], "share", num_scored, accuracy[1], True),
        "ece": Figure(ece, "share", num_tokens, None, False),
        "drift_kl": Figure(drift, "nats/token", num_tokens, float(gold.drift_kl.std() / math.sqrt(max(1, num_tokens))), False),
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
    """How scores rank the true epistemic (KL(truth || model)) and aleatoric (entropy of the truth) uncertainty; None on real data.

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


def total_nll(results: Mapping[str, Any]) -> float:
    """Nats per token of a set's `items`, for choosing a seed on the validation split."""
    items = results["items"]
    return float(torch.tensor([item["nll_sum"] for item in items]).sum() / max(1, sum(item["num_tokens"] for item in items)))
