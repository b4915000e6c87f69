"""How well confidence and scores tell the truth: calibration error, Brier scores, rank correlation.

Shapes: N target tokens, V vocabulary, G bins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReliabilityBin:
    """Tokens whose confidence lies in (lower, upper]; `accuracy` and `confidence` are None where there are no tokens."""

    lower: float
    upper: float
    num_tokens: int
    confidence: float | None
    accuracy: float | None


def reliability_curve(confidence_N: Tensor, is_correct_N: Tensor, num_bins: int) -> list[ReliabilityBin]:
    """Equal-width bins of confidence in [0, 1] with the mean confidence and the accuracy of each (Guo et al. 2017)."""
    index_N = (confidence_N * num_bins).ceil().long().clamp(1, num_bins) - 1
    count_G = torch.bincount(index_N, minlength=num_bins)
    confidence_G = torch.bincount(index_N, weights=confidence_N.double(), minlength=num_bins)
    correct_G = torch.bincount(index_N, weights=is_correct_N.double(), minlength=num_bins)
    return [
        ReliabilityBin(
            lower=bin_ / num_bins,
            upper=(bin_ + 1) / num_bins,
            num_tokens=count,
            confidence=float(confidence_G[bin_]) / count if count else None,
            accuracy=float(correct_G[bin_]) / count if count else None,
        )
        for bin_, count in enumerate(count_G.tolist())
    ]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float | None:
    """Mean |accuracy - confidence| over tokens, in [0, 1]; None without tokens. Biased upwards where bins hold few tokens."""
    total = sum(bin_.num_tokens for bin_ in bins)
    if not total:
        return None
    gaps = [
        bin_.num_tokens * abs(bin_.accuracy - bin_.confidence)
        for bin_ in bins
        if bin_.accuracy is not None and bin_.confidence is not None
    ]
    return sum(gaps) / total


def law_brier(logprobs_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Brier score of the whole law, [N] in [0, 2]: sum_v (q_v - 1[v = y])^2 = sum_v q_v^2 - 2 q_y + 1 (Brier 1950).

    A proper score, as the nll is, but bounded: one token that was ruled out cannot outweigh all others.
    """
    probability_N = logprobs_NV.gather(1, labels_N[:, None]).squeeze(1).exp()
    return ((2 * logprobs_NV).exp().sum(1) - 2 * probability_N + 1).clamp(min=0.0)


def rank_correlation(first_N: Tensor, second_N: Tensor) -> float | None:
    """Spearman's rho with ties at their mean rank; None where one side is constant or there are fewer than three tokens."""
    if len(first_N) < 3:
        return None
    a_N, b_N = _mean_ranks(first_N), _mean_ranks(second_N)
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    scale = (a_N.square().sum() * b_N.square().sum()).sqrt()
    return float((a_N * b_N).sum() / scale) if scale > 0 else None


def _mean_ranks(values_N: Tensor) -> Tensor:
    _, inverse_N, count_G = values_N.unique(return_inverse=True, return_counts=True)
    last_G = count_G.cumsum(0)
    mean_rank_G: Tensor = last_G.double() - (count_G.double() - 1) / 2
    return mean_rank_G[inverse_N]
