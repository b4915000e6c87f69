"""The combined objective on one micro-batch from its logits: sums over target tokens, to be divided once per step by the caller.

This is the plain form: every operation is autograd's and [N, V] is held. Training uses the fused head, which gives the same
numbers; this one serves models whose head cannot be fused, other trainers, and as the reference in tests.

Shapes: N target tokens of the micro-batch, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from components.objectives.divergences import divergence
from components.objectives.objective import NUM_TOP_ENTRIES, Objective
from components.objectives.sparse_target import TeacherTargets, sparse_kl
from components.objectives.weights import Threshold, TokenFacts, TokenWeights, weigh
from components.uncertainty.scores import token_entropy, top_entropy


@dataclass(frozen=True)
class TokenTerms:
    """`loss_sum` carries the graph; per token [N], detached: nll and divergence in nats, entropy if asked for, both weights."""

    loss_sum: Tensor
    nll_N: Tensor
    divergence_N: Tensor
    entropy_N: Tensor | None
    mle_weight_N: Tensor
    distil_weight_N: Tensor


def token_terms(
    objective: Objective,
    logits_NV: Tensor,
    labels_N: Tensor,
    teacher: TeacherTargets | Tensor | None,
    facts: TokenFacts,
    threshold: Threshold,
    distil_weight: float | None = None,
) -> TokenTerms:
    """`sum_t m_t u_t nll_t + weight w_t T^2 D_t`; without tokens it is a zero with a graph.

    `teacher`: the cache's columns, or the full logits [N, V] of an online teacher. A label of -100 marks a prompt token.
    """
    nll_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    entropy_N = entropy_of(objective, logits_NV.detach())
    weight = objective.distil_weight if distil_weight is None else distil_weight
    weights = weigh(objective, nll_N.detach(), entropy_N, facts, threshold, weight)
    divergence_N = torch.zeros_like(nll_N)
    if objective.distils:
        assert teacher is not None, "distillation needs the teacher"
        divergence_N = distillation_loss(objective, logits_NV, teacher)
    return TokenTerms(
        loss_sum=weighted_sum(weights, nll_N, divergence_N),
        nll_N=nll_N.detach(),
        divergence_N=divergence_N.detach(),
        entropy_N=entropy_N,
        mle_weight_N=weights.mle_N,
        distil_weight_N=weights.distil_N,
    )


def weighted_sum(weights: TokenWeights, nll_N: Tensor, divergence_N: Tensor) -> Tensor:
    """The sum that is differentiated. A token of weight zero adds exactly nothing, whatever its loss."""
    return (weights.mle_N * nll_N).sum() + (weights.distil_N * divergence_N).sum()


def entropy_of(objective: Objective, logits_NV: Tensor) -> Tensor | None:
    """The entropy that the objective's weights need, [N] in nats."""
    if objective.entropy == "none":
        return None
    logprobs_NV = logits_NV.log_softmax(1)
    return token_entropy(logprobs_NV) if objective.entropy == "full" else top_entropy(logprobs_NV, NUM_TOP_ENTRIES)


def distillation_loss(objective: Objective, logits_NV: Tensor, teacher: TeacherTargets | Tensor) -> Tensor:
    """T^2 * D(teacher, student), [N]. The factor keeps the gradient's size when the temperature changes (Hinton et al. 2015)."""
    if isinstance(teacher, TeacherTargets):
        return sparse_kl(logits_NV, teacher, objective.temperature)
    teacher_NV, student_NV = ((logits / objective.temperature).log_softmax(1) for logits in (teacher, logits_NV))
    return objective.temperature**2 * divergence(objective.divergence, teacher_NV, student_NV)
