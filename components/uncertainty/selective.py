"""Selective prediction: how much risk is left when a model answers only where it is surest.

Shapes: N target tokens, C points of a curve. Confidence is any score of which more means surer; the loss of a token is its
error, 0 or 1 (any number >= 0 will do). Sources: El-Yaniv & Wiener 2010 (risk-coverage curve), Geifman & El-Yaniv 2017,
arXiv 1705.08500 (selective risk of deep networks), Geifman et al. 2019, arXiv 1805.08206 (AURC and its excess).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RiskPoint:
    """The mean loss of the `coverage` surest share of the tokens."""

    coverage: float
    risk: float


def selective_risks(confidence_N: Tensor, loss_N: Tensor) -> Tensor:
    """Mean loss of the k surest tokens for k = 1 ... N, [N] in float64.

    Tokens of equal confidence have no order: each point inside such a group is the mean over all orders, so the result does
    not depend on how the tokens were listed.
    """
    values_G, group_N, size_G = confidence_N.unique(return_inverse=True, return_counts=True)
    loss_G = torch.zeros(len(values_G), dtype=torch.float64, device=loss_N.device)
    loss_G.index_add_(0, group_N, loss_N.double())
    mean_G, size_G = (loss_G / size_G).flip(0), size_G.flip(0)  # the surest group first
    num_taken_N = torch.arange(1, len(loss_N) + 1, dtype=torch.float64, device=loss_N.device)
    risk_N: Tensor = mean_G.repeat_interleave(size_G).cumsum(0) / num_taken_N
    return risk_N


def area_under_risk_coverage(confidence_N: Tensor, loss_N: Tensor) -> float | None:
    """AURC: the selective risk averaged over all coverages k/N; lower is better; None without tokens."""
    return float(selective_risks(confidence_N, loss_N).mean()) if len(loss_N) else None


def excess_area_under_risk_coverage(confidence_N: Tensor, loss_N: Tensor) -> float | None:
    """AURC above that of the oracle, which is surest where the loss is smallest: >= 0, and free of the mean loss itself.

    The oracle is the exact one of these N tokens, not the integral r + (1 - r) ln(1 - r) that it tends to.
    """
    area, oracle = area_under_risk_coverage(confidence_N, loss_N), area_under_risk_coverage(-loss_N, loss_N)
    return None if area is None or oracle is None else area - oracle


def risk_coverage_curve(confidence_N: Tensor, loss_N: Tensor, num_points: int) -> list[RiskPoint]:
    """At most `num_points` points of the curve at evenly spaced coverages, the last at coverage 1; empty without tokens."""
    risk_N = selective_risks(confidence_N, loss_N)
    num_tokens = len(risk_N)
    taken = sorted({-(-num_tokens * point // num_points) for point in range(1, num_points + 1)} - {0})
    return [RiskPoint(count / num_tokens, float(risk_N[count - 1])) for count in taken]
