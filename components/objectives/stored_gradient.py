"""Gradients that the fused head computes in its forward pass: how they are summed, kept and handed out.

Shapes: N tokens, C rows of a chunk, V vocabulary, H hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from components.objectives.head import Head, slices

PARTIAL_BYTES = 8 * 2**20


@dataclass
class HeadGradients:
    """None where no gradient is wanted: a frozen head costs no product and no memory."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def allocate(cls, hidden_NH: Tensor, head: Head, wants: tuple[bool, bool, bool]) -> "HeadGradients":
        """Zeros, so that padded columns and an empty micro-batch have a gradient of zero."""
        exact = torch.promote_types(head.weight_VH.dtype, torch.float32)
        return cls(
            torch.zeros_like(hidden_NH, dtype=head.weight_VH.dtype) if wants[0] else None,
            torch.zeros_like(head.weight_VH, dtype=exact) if wants[1] else None,
            torch.zeros_like(head.bias_V, dtype=exact) if wants[2] and head.bias_V is not None else None,
        )

    @property
    def wanted(self) -> bool:
        return any(gradient is not None for gradient in (self.hidden_NH, self.weight_VH, self.bias_V))

    def add(self, chunk: slice, logit_gradient_CV: Tensor, hidden_CH: Tensor, head: Head) -> None:
        """The products of one chunk's logit gradient with the head and with the hidden states."""
        if self.hidden_NH is not None:
            out_CH = self.hidden_NH[chunk]
            torch.addmm(out_CH, logit_gradient_CV, head.weight_VH[: head.num_columns], beta=0, alpha=head.scale, out=out_CH)
        if self.weight_VH is not None:
            add_product_(self.weight_VH[: head.num_columns], logit_gradient_CV, hidden_CH, head.scale)
        if self.bias_V is not None:
            self.bias_V[: head.num_columns].add_(logit_gradient_CV.sum(0, dtype=self.bias_V.dtype), alpha=head.scale)

    def finish(self, hidden_dtype: torch.dtype, head_dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """In the dtypes of what they are gradients of: the one rounding they get."""
        dtypes = (hidden_dtype, head_dtype, head_dtype)
        gradients = (self.hidden_NH, self.weight_VH, self.bias_V)
        self.hidden_NH = self.weight_VH = self.bias_V = None
        return tuple(None if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True))


def add_product_(sum_VH: Tensor, left_CV: Tensor, right_CH: Tensor, scale: float) -> None:
    """sum += scale * left.T @ right. Low-precision factors are summed up in the sum's own precision, a few rows at a time."""
    if sum_VH.dtype == left_CV.dtype:
        sum_VH.addmm_(left_CV.T, right_CH, alpha=scale)
        return
    on_cuda = left_CV.device.type == "cuda"
    size = max(1, (32 if on_cuda else 1) * PARTIAL_BYTES // (4 * max(1, sum_VH.shape[1])))
    for columns in slices(0, len(sum_VH), size):
        part_CV = left_CV[:, columns]
        # Only CUDA can hand out the product's fp32 accumulator.
        product_VH = torch.mm(part_CV.T, right_CH, out_dtype=sum_VH.dtype) if on_cuda else part_CV.T @ right_CH
        sum_VH[columns].add_(product_VH, alpha=scale)


def scale_stored(stored: Tensor | None, factor: Tensor) -> Tensor | None:
    """stored * factor: in place where nobody can ask again (the head's gradient is as large as the head), else a copy."""
    if stored is None:
        return None
    scaled = stored.clone() if torch._C._autograd._get_current_graph_task_keep_graph() else stored
    if torch.finfo(stored.dtype).bits >= 32:
        return scaled.mul_(factor.to(stored.dtype))
    # Piece by piece in fp32: rounding the factor itself to bf16 would scale the whole gradient by up to 0.4 % too much.
    size = max(1, PARTIAL_BYTES // (4 * max(1, scaled[:1].numel())))
    for rows in slices(0, len(scaled), size):
        scaled[rows] = scaled[rows].float() * factor.float()
    return scaled
