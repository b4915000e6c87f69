"""The language model's head: from hidden states to logits, and how many rows of logits fit a budget.

Shapes: C rows of a chunk, N tokens, V vocabulary, H hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 96 * 2**20, "cuda": 512 * 2**20}
"""Logits held at once: on a CPU 192 rows of 128,256 columns (products of 128 rows ran 5 % slower, of 512 rows 3 % faster)."""
LEAST_ROWS_CUDA = 1024  # fewer rows leave a GPU's matrix units idle: 128-256 rows were slower than the plain loss on an A100
ROWS_MULTIPLE = 32
BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Logits that the element-wise work walks over at once: on a CPU small enough to stay in the cache between its passes."""


@dataclass(frozen=True)
class Head:
    """logits = cap(scale * (hidden @ weight.T + bias)), cap(z) = softcap * tanh(z / softcap) where there is a softcap."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    num_valid: int | None = None
    """Columns from here on are padding of the vocabulary: no part of the softmax, no gradient."""

    @property
    def num_columns(self) -> int:
        return self.weight_VH.shape[0] if self.num_valid is None else self.num_valid


def naive_logits(head: Head, hidden_NH: Tensor) -> Tensor:
    """The whole of the logits, [N, V], in the head's dtype: what the fused loss never holds. Carries a graph."""
    bias_V = None if head.bias_V is None else head.bias_V[: head.num_columns]
    logits_NV = torch.nn.functional.linear(hidden_NH, head.weight_VH[: head.num_columns], bias_V) * head.scale
    return logits_NV if head.softcap is None else head.softcap * torch.tanh(logits_NV / head.softcap)


def project_rows(head: Head, hidden_CH: Tensor, out_CV: Tensor) -> None:
    """scale * (hidden @ weight.T + bias) into `out_CV`, without the softcap: it belongs to the element-wise work."""
    weight_HV = head.weight_VH[: head.num_columns].T
    if head.bias_V is None:
        torch.addmm(out_CV, hidden_CH, weight_HV, beta=0, alpha=head.scale, out=out_CV)
    else:
        torch.addmm(head.bias_V[: head.num_columns], hidden_CH, weight_HV, beta=head.scale, alpha=head.scale, out=out_CV)


def cap_(logits_CV: Tensor, softcap: float) -> Tensor:
    """Cap the logits in place and return the slope d cap(z) / dz at each, [C, V]."""
    torch.tanh_(logits_CV.div_(softcap))
    slope_CV = 1 - logits_CV.square()
    logits_CV.mul_(softcap)
    return slope_CV


def rows_per_chunk(num_columns: int, itemsize: int, device: torch.device, chunk_bytes: int | None) -> int:
    """Rows of logits within the budget; a budget that the caller sets is taken literally (at least one row)."""
    row_bytes = max(1, num_columns * itemsize)
    if chunk_bytes is not None:
        return max(1, chunk_bytes // row_bytes)
    kind = "cpu" if device.type == "cpu" else "cuda"
    rows = CHUNK_BYTES[kind] // row_bytes
    least = ROWS_MULTIPLE if kind == "cpu" else LEAST_ROWS_CUDA
    return max(least, rows // ROWS_MULTIPLE * ROWS_MULTIPLE)


def rows_per_block(num_columns: int, itemsize: int, device: torch.device) -> int:
    return max(1, BLOCK_BYTES["cpu" if device.type == "cpu" else "cuda"] // max(1, num_columns * itemsize))


def slices(start: int, stop: int, size: int) -> list[slice]:
    """[start, stop) cut into pieces of `size`, the last one shorter."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
