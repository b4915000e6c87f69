"""Losses of a block of rows of logits, and the gradient written over those logits: what every chunk of the fused head does.

Shapes: N tokens of the micro-batch, C rows of this block, V vocabulary, K entries, B = K + 1 buckets.

Nothing here carries a graph. The weights of a token come from the caller, who sees its nll (and entropy) first: so a threshold on
them costs no second pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from components.objectives.divergences import divergence
from components.objectives.head import Head
from components.objectives.labels import IGNORED_LABEL
from components.objectives.objective import NUM_TOP_ENTRIES, Divergence, EntropyKind
from components.objectives.row_law import RowLaw, bucket_kl, gradient_, law_entropy, split_law_
from components.objectives.sparse_target import TeacherTargets, normalise
from components.uncertainty.scores import top_entropy


@dataclass(frozen=True)
class TokenChunk:
    """What is known of some tokens before they are weighed, detached. `entropy_C` where it was asked for."""

    rows: slice
    labels_C: Tensor
    nll_C: Tensor
    entropy_C: Tensor | None


Weigh = Callable[[TokenChunk], tuple[Tensor, Tensor]]
"""-> (mle_weight_C, distil_weight_C); any dtype, a mask included."""


@dataclass(frozen=True)
class DenseTeacher:
    """The teacher's full law: its logits are computed chunk by chunk from its own hidden states, without a graph."""

    hidden_NH: Tensor
    head: Head


@dataclass(frozen=True)
class LossSpec:
    """Everything the loss of a micro-batch depends on beside the logits."""

    labels_N: Tensor
    weigh: Weigh
    teacher: TeacherTargets | DenseTeacher | None = None
    temperature: float = 1.0
    divergence: Divergence = "forward_kl"
    entropy: EntropyKind = "none"

    def __post_init__(self) -> None:
        assert self.divergence == "forward_kl" or not isinstance(self.teacher, TeacherTargets), (
            f"{self.divergence} needs the teacher's full law, not its top entries"
        )


class RowLoss(NamedTuple):
    """Per token, [C] each. `kl_C` holds T^2 * divergence; entropy is 0 where it was not asked for."""

    nll_C: Tensor
    kl_C: Tensor
    entropy_C: Tensor
    mle_weight_C: Tensor
    distil_weight_C: Tensor


def row_loss_(
    logits_CV: Tensor, rows: slice, spec: LossSpec, teacher_logits_CV: Tensor | None, *, wants_gradient: bool
) -> RowLoss:
    """Losses of these rows. `logits_CV` end as d(sum mle_weight * nll + distil_weight * kl) / dlogits, or as anything at all."""
    labels_C = spec.labels_N[rows]
    top_entropy_C = top_entropy(logits_CV, NUM_TOP_ENTRIES) if spec.entropy == "top20" else None
    if teacher_logits_CV is not None:
        return _dense_loss_(logits_CV, rows, spec, teacher_logits_CV, top_entropy_C, wants_gradient)
    teacher = spec.teacher.rows(rows) if isinstance(spec.teacher, TeacherTargets) else None
    label_logits_C = _at_label(logits_CV, labels_C)
    shares_softmax = teacher is None or spec.temperature == 1.0
    likelihood = split_law_(
        logits_CV if shares_softmax else logits_CV.clone(),
        *((teacher.entry_ids_NK, teacher.is_empty_NK) if teacher and shares_softmax else ()),
    )
    nll_C = _where_target(labels_C, likelihood.log_partition_C - label_logits_C)
    entropy_C = law_entropy(likelihood) if spec.entropy == "full" else top_entropy_C
    mle_C, distil_C = _weigh(spec, rows, labels_C, nll_C, entropy_C)
    kl_C = torch.zeros_like(nll_C)
    softened = likelihood
    teacher_CB = None
    if teacher is not None:
        softened = (
            likelihood
            if shares_softmax
            else split_law_(logits_CV.div_(spec.temperature), teacher.entry_ids_NK, teacher.is_empty_NK)
        )
        teacher_CB = normalise(teacher).to(logits_CV.dtype)
        kl_C = spec.temperature**2 * bucket_kl(teacher_CB, softened)
    if wants_gradient:
        _gradient_(likelihood, softened, teacher_CB, labels_C, mle_C, distil_C, spec.temperature)
    return RowLoss(nll_C, kl_C, torch.zeros_like(nll_C) if entropy_C is None else entropy_C, mle_C, distil_C)


def _gradient_(
    likelihood: RowLaw,
    softened: RowLaw,
    teacher_CB: Tensor | None,
    labels_C: Tensor,
    mle_C: Tensor,
    distil_C: Tensor,
    temperature: float,
) -> None:
    """Into the memory of `softened`: (a + b) q - b p - a e_label; at another temperature a q - a e_label + T b (q_T - p)."""
    if likelihood is softened:
        weight_C = mle_C if teacher_CB is None else mle_C + distil_C
        gradient_CV = gradient_(softened, weight_C, distil_C, teacher_CB)
    else:
        pull_C = temperature * distil_C  # T^2 of the loss, 1/T of the logits' division
        gradient_CV = gradient_(softened, pull_C, pull_C, teacher_CB).add_(gradient_(likelihood, mle_C, None, None))
    gradient_CV.scatter_add_(1, labels_C.clamp(min=0)[:, None], -mle_C[:, None])


def _dense_loss_(
    logits_CV: Tensor, rows: slice, spec: LossSpec, teacher_logits_CV: Tensor, top_entropy_C: Tensor | None, wants_gradient: bool
) -> RowLoss:
    """Any divergence between full laws; autograd works within the block, so only a block's worth of copies exists."""
    labels_C = spec.labels_N[rows]
    teacher_logprobs_CV = (teacher_logits_CV / spec.temperature).log_softmax(1)
    with torch.enable_grad():
        student_CV = logits_CV.detach().requires_grad_(wants_gradient)
        logprobs_CV = student_CV.log_softmax(1)
        nll_C = _where_target(labels_C, -_at_label(logprobs_CV, labels_C))
        softened_CV = logprobs_CV if spec.temperature == 1.0 else (student_CV / spec.temperature).log_softmax(1)
        kl_C = spec.temperature**2 * divergence(spec.divergence, teacher_logprobs_CV, softened_CV)
    entropy_C = torch.special.entr(logprobs_CV.detach().exp()).sum(1) if spec.entropy == "full" else top_entropy_C
    mle_C, distil_C = _weigh(spec, rows, labels_C, nll_C.detach(), entropy_C)
    if wants_gradient:
        gradients = torch.autograd.grad([nll_C, kl_C], student_CV, [mle_C, distil_C])
        logits_CV.copy_(gradients[0])
    return RowLoss(nll_C.detach(), kl_C.detach(), torch.zeros_like(mle_C) if entropy_C is None else entropy_C, mle_C, distil_C)


def _weigh(spec: LossSpec, rows: slice, labels_C: Tensor, nll_C: Tensor, entropy_C: Tensor | None) -> tuple[Tensor, Tensor]:
    mle_C, distil_C = spec.weigh(TokenChunk(rows, labels_C, nll_C, entropy_C))
    return _where_target(labels_C, mle_C.detach().to(nll_C.dtype)), distil_C.detach().to(nll_C.dtype)


def _at_label(values_CV: Tensor, labels_C: Tensor) -> Tensor:
    return values_CV.gather(1, labels_C.clamp(min=0)[:, None]).squeeze(1)


def _where_target(labels_C: Tensor, values_C: Tensor) -> Tensor:
    """Zero where there is no label: by choice, not by multiplication, so that no NaN gets through."""
    return torch.where(labels_C == IGNORED_LABEL, torch.zeros_like(values_C), values_C)
