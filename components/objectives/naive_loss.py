"""The same loss from whole logits, by autograd: what the fused head must equal, and what runs where a head cannot be fused.

Shapes: N tokens of the micro-batch, V vocabulary. Holds several copies of the logits.
"""

import torch
from torch import Tensor

from components.objectives.divergences import divergence
from components.objectives.fused_head import FusedLoss
from components.objectives.head import naive_logits
from components.objectives.labels import IGNORED_LABEL
from components.objectives.objective import NUM_TOP_ENTRIES, EntropyKind
from components.objectives.row_loss import DenseTeacher, LossSpec, TokenChunk
from components.objectives.sparse_target import TeacherTargets, sparse_kl
from components.uncertainty.scores import token_entropy, top_entropy


def naive_token_loss(logits_NV: Tensor, spec: LossSpec) -> FusedLoss:
    """As `fused_token_loss`, in fp32 (or fp64); `weigh` is called once, with every token."""
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    is_target_N = spec.labels_N != IGNORED_LABEL
    nll_N = torch.nn.functional.cross_entropy(logits_NV, spec.labels_N, reduction="none", ignore_index=IGNORED_LABEL)
    entropy_N = logits_entropy(logits_NV.detach(), spec.entropy)
    chunk = TokenChunk(slice(0, len(logits_NV)), spec.labels_N, nll_N.detach(), entropy_N)
    mle_N, distil_N = (weight_N.detach().to(nll_N.dtype) for weight_N in spec.weigh(chunk))
    mle_N = torch.where(is_target_N, mle_N, torch.zeros_like(mle_N))
    kl_N = distance_from_teacher(logits_NV, spec)
    loss_sum = (mle_N * nll_N + distil_N * kl_N).sum()
    return FusedLoss(loss_sum, nll_N.detach(), kl_N.detach(), entropy_N, mle_N, distil_N)


def logits_entropy(logits_NV: Tensor, kind: EntropyKind) -> Tensor | None:
    if kind == "top20":
        return top_entropy(logits_NV, NUM_TOP_ENTRIES)
    return token_entropy(logits_NV.log_softmax(1)) if kind == "full" else None


def distance_from_teacher(logits_NV: Tensor, spec: LossSpec) -> Tensor:
    """T^2 * divergence from whichever teacher there is, [N]; zero without one."""
    if spec.teacher is None:
        return logits_NV.new_zeros(len(logits_NV))
    if isinstance(spec.teacher, TeacherTargets):
        return sparse_kl(logits_NV, spec.teacher, spec.temperature)
    laws_NV = [(logits / spec.temperature).log_softmax(1) for logits in (dense_teacher_logits(spec.teacher), logits_NV)]
    return spec.temperature**2 * divergence(spec.divergence, *laws_NV)


@torch.no_grad()
def dense_teacher_logits(teacher: DenseTeacher) -> Tensor:
    logits_NV = naive_logits(teacher.head, teacher.hidden_NH)
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
