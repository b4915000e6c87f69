"""The combined objective on one micro-batch: sums over its target tokens, to be divided once per step by the caller.

Shapes: N target tokens of the micro-batch, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from components.objectives.presets import Objective
from components.objectives.sparse_target import TeacherTargets, label_nll, sparse_kl
from components.uncertainty.scores import token_entropy
from components.uncertainty.selection import select_tokens


@dataclass(frozen=True)
class ObjectiveTerms:
    """Sums over target tokens. Only `loss_sum` carries a graph; the rest is for people and for the next threshold."""

    loss_sum: Tensor
    nll_sum: Tensor
    selected_nll_sum: Tensor
    kl_sum: Tensor
    num_targets: int
    num_selected: Tensor
    nll_N: Tensor
    kl_N: Tensor
    selected_N: Tensor


def token_scores(objective: Objective, logits_NV: Tensor, nll_N: Tensor, teacher: TeacherTargets | None) -> Tensor:
    """The detached score of each target token, [N]; see components.uncertainty.scores for their meaning."""
    if objective.score == "student_nll":
        return nll_N.detach()
    if objective.score == "entropy":
        return token_entropy(logits_NV.detach().log_softmax(1))
    assert teacher is not None, f"score {objective.score} needs the teacher's columns"
    teacher_nll_N = -teacher.label_logprob_N
    return teacher_nll_N if objective.score == "teacher_nll" else nll_N.detach() - teacher_nll_N


def objective_terms(
    objective: Objective,
    logits_NV: Tensor,
    labels_N: Tensor,
    teacher: TeacherTargets | None,
    selected_N: Tensor,
    nll_N: Tensor | None = None,
) -> ObjectiveTerms:
    """`sum_t m_t * nll_t + weight * w_t * T^2 KL_t` with the mask given; without targets it is a zero with a graph."""
    if nll_N is None:
        nll_N = label_nll(logits_NV, labels_N)
    selected = selected_N.to(nll_N.dtype)
    selected_nll_sum = (selected * nll_N).sum()
    kl_N = torch.zeros_like(nll_N)
    if objective.distils:
        assert teacher is not None, "distillation needs the teacher's columns"
        kl_N = sparse_kl(logits_NV, teacher, objective.temperature)
    kl_sum = (distilled_weights(objective, selected) * kl_N).sum()
    return ObjectiveTerms(
        loss_sum=selected_nll_sum + objective.distil_weight * kl_sum,
        nll_sum=nll_N.detach().sum(),
        selected_nll_sum=selected_nll_sum.detach(),
        kl_sum=kl_sum.detach(),
        num_targets=len(labels_N),
        num_selected=selected_N.sum(),
        nll_N=nll_N.detach(),
        kl_N=kl_N.detach(),
        selected_N=selected_N,
    )


def distilled_weights(objective: Objective, selected: Tensor) -> Tensor:
    """w_t, [N]: which tokens are pulled to the teacher."""
    if objective.distil_on == "none":
        return torch.zeros_like(selected)
    if objective.distil_on == "rest":
        return 1 - selected
    return selected if objective.distil_on == "selected" else torch.ones_like(selected)


def selection_mask(objective: Objective, scores_N: Tensor, threshold: float | None) -> Tensor:
    """`selected_N` for scores already computed; everything where there is no threshold (yet)."""
    if objective.select == "random":
        return select_tokens(scores_N, objective.keep, "low")
    if objective.select == "all" or threshold is None:
        return torch.ones_like(scores_N, dtype=torch.bool)
    return select_tokens(scores_N, threshold, objective.select)
