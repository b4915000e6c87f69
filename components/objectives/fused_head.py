"""The fused head: per-token losses and their gradients straight from hidden states, never holding all logits.

    loss_sum = sum_t mle_weight_t * nll_t + distil_weight_t * T^2 * divergence(teacher_t, student_t)

Shapes: N tokens of the micro-batch, C rows of a chunk, V vocabulary, H hidden width.

The forward pass projects a chunk of rows, walks over it in blocks that stay in the cache, turns its logits into their gradient in
place and multiplies that by the head and the hidden states at once; the backward pass only scales what is stored. So a step
costs three matrix products, as a plain head does, and the memory of one chunk. The head's gradient is summed in fp32: rounding
it to bf16 chunk by chunk drifts.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.objectives.head import Head, cap_, project_rows, rows_per_block, rows_per_chunk, slices
from components.objectives.objective import Divergence, EntropyKind
from components.objectives.row_loss import DenseTeacher, LossSpec, RowLoss, TokenChunk, Weigh, row_loss_
from components.objectives.sparse_target import TeacherTargets
from components.objectives.stored_gradient import HeadGradients, scale_stored


@dataclass(frozen=True)
class FusedLoss:
    """`loss_sum` carries the graph; the rest is per token, detached, fp32. `kl_N` holds T^2 * divergence."""

    loss_sum: Tensor
    nll_N: Tensor
    kl_N: Tensor
    entropy_N: Tensor | None
    mle_weight_N: Tensor
    distil_weight_N: Tensor


@dataclass(frozen=True)
class HeadStatistics:
    nll_N: Tensor
    entropy_N: Tensor | None


def fused_token_loss(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    weigh: Weigh,
    *,
    teacher: TeacherTargets | DenseTeacher | None = None,
    temperature: float = 1.0,
    divergence: Divergence = "forward_kl",
    entropy: EntropyKind = "none",
    chunk_bytes: int | None = None,
) -> FusedLoss:
    """The weighted loss of these tokens; without tokens it is a zero with a graph. A label of -100 has no nll and no weight.

    `weigh` is called once for each block of rows, in order. Entry ids of a row must differ from each other, those of empty
    entries (logprob -inf) apart.
    """
    spec = LossSpec(labels_N, weigh, teacher, temperature, divergence, entropy)
    loss_sum, *columns = _fused_head(hidden_NH, head, spec, chunk_bytes)
    rows = RowLoss(*columns)
    return FusedLoss(
        loss_sum, rows.nll_C, rows.kl_C, None if entropy == "none" else rows.entropy_C, rows.mle_weight_C, rows.distil_weight_C
    )


@torch.no_grad()
def head_statistics(
    hidden_NH: Tensor, head: Head, labels_N: Tensor, *, entropy: EntropyKind = "none", chunk_bytes: int | None = None
) -> HeadStatistics:
    """nll and entropy alone, one matrix product: for a mask that needs a quantile of the micro-batch before the loss."""
    spec = LossSpec(labels_N, _weigh_nothing, entropy=entropy)
    rows = RowLoss(*_fused_head(hidden_NH, head, spec, chunk_bytes)[1:])
    return HeadStatistics(rows.nll_C, None if entropy == "none" else rows.entropy_C)


def _weigh_nothing(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(chunk.nll_C), torch.zeros_like(chunk.nll_C)


def _fused_head(hidden_NH: Tensor, head: Head, spec: LossSpec, chunk_bytes: int | None) -> tuple[Tensor, ...]:
    assert torch.is_autocast_enabled(hidden_NH.device.type) or hidden_NH.dtype == head.weight_VH.dtype, (
        f"hidden states are {hidden_NH.dtype}, the head is {head.weight_VH.dtype}"
    )
    wants = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden_NH, head.weight_VH, head.bias_V)
    )
    apply: Any = _FusedHead.apply
    outputs: tuple[Tensor, ...] = apply(hidden_NH, head.weight_VH, head.bias_V, head, spec, wants, chunk_bytes)
    return outputs


class _FusedHead(torch.autograd.Function):
    """-> loss_sum and the five columns of RowLoss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        head: Head,
        spec: LossSpec,
        wants: tuple[bool, bool, bool],
        chunk_bytes: int | None,
    ) -> tuple[Tensor, ...]:
        """Under autocast the products are in its dtype, and the gradients still in those of what they belong to."""
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            cast = replace(
                head, weight_VH=weight_VH.detach().to(dtype), bias_V=None if bias_V is None else bias_V.detach().to(dtype)
            )
            gradients = HeadGradients.allocate(hidden_NH, cast, wants)
            columns = _all_chunks(hidden_NH.to(dtype), cast, spec, gradients, chunk_bytes)
        rows = RowLoss(*columns)
        loss_sum = (rows.mle_weight_C * rows.nll_C + rows.distil_weight_C * rows.kl_C).sum()
        ctx.save_for_backward(*gradients.finish(hidden_NH.dtype, weight_VH.dtype))
        ctx.mark_non_differentiable(*columns)
        ctx.set_materialize_grads(False)
        return (loss_sum, *columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        scaled = [None, None, None] if grad_loss is None else [scale_stored(stored, grad_loss) for stored in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


def _all_chunks(
    hidden_NH: Tensor, head: Head, spec: LossSpec, gradients: HeadGradients, chunk_bytes: int | None
) -> tuple[Tensor, ...]:
    """Every token's five numbers, and the gradients summed up on the way."""
    num_tokens, size = len(hidden_NH), rows_per_chunk(head.num_columns, hidden_NH.element_size(), hidden_NH.device, chunk_bytes)
    exact = torch.promote_types(hidden_NH.dtype, torch.float32)
    columns_5N = torch.zeros(5, num_tokens, dtype=exact, device=hidden_NH.device)
    # One buffer for all chunks: a fresh one would be paged in again for each of them.
    buffer_CV = hidden_NH.new_empty(min(size, num_tokens), head.num_columns)
    teacher_buffer_CV = _teacher_buffer(spec, buffer_CV)
    for chunk in slices(0, num_tokens, size):
        logits_CV = buffer_CV[: chunk.stop - chunk.start]
        project_rows(head, hidden_NH[chunk], logits_CV)
        teacher_CV = _project_teacher(spec, chunk, teacher_buffer_CV)
        for rows, local in _blocks(chunk, head.num_columns, logits_CV):
            teacher_rows_CV = None if teacher_CV is None else teacher_CV[local]
            columns_5N[:, rows] = torch.stack(
                _block_loss_(logits_CV[local], rows, head.softcap, spec, teacher_rows_CV, gradients.wanted)
            )
        gradients.add(chunk, logits_CV, hidden_NH[chunk], head)
    return columns_5N.unbind(0)


def _blocks(chunk: slice, num_columns: int, logits_CV: Tensor) -> Iterator[tuple[slice, slice]]:
    """Pieces of a chunk: their rows in the micro-batch, and in the chunk."""
    for rows in slices(chunk.start, chunk.stop, rows_per_block(num_columns, 4, logits_CV.device)):
        yield rows, slice(rows.start - chunk.start, rows.stop - chunk.start)


def _block_loss_(
    logits_CV: Tensor, rows: slice, softcap: float | None, spec: LossSpec, teacher_CV: Tensor | None, wants_gradient: bool
) -> RowLoss:
    """`row_loss_` in fp32 (or fp64), with the cap and its slope; the gradient ends in `logits_CV` whatever its dtype."""
    exact_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    slope_CV = None if softcap is None else cap_(exact_CV, softcap)
    if teacher_CV is not None and isinstance(spec.teacher, DenseTeacher):
        teacher_CV = teacher_CV.to(exact_CV.dtype)
        if spec.teacher.head.softcap is not None:
            cap_(teacher_CV, spec.teacher.head.softcap)
    losses = row_loss_(exact_CV, rows, spec, teacher_CV, wants_gradient=wants_gradient)
    if wants_gradient and slope_CV is not None:
        exact_CV.mul_(slope_CV)
    if wants_gradient and exact_CV is not logits_CV:
        logits_CV.copy_(exact_CV)
    return losses


def _teacher_buffer(spec: LossSpec, buffer_CV: Tensor) -> Tensor | None:
    if not isinstance(spec.teacher, DenseTeacher):
        return None
    assert spec.teacher.head.num_columns == buffer_CV.shape[1], "teacher and student must share one vocabulary"
    return spec.teacher.head.weight_VH.new_empty(buffer_CV.shape)


def _project_teacher(spec: LossSpec, chunk: slice, buffer_CV: Tensor | None) -> Tensor | None:
    if buffer_CV is None or not isinstance(spec.teacher, DenseTeacher):
        return None
    logits_CV = buffer_CV[: chunk.stop - chunk.start]
    project_rows(spec.teacher.head, spec.teacher.hidden_NH[chunk].to(logits_CV.dtype), logits_CV)
    return logits_CV
