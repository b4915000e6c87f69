"""From the teacher's final hidden states to what the cache keeps of each token, fused with the head: [N, V] is never held.

Shapes: N tokens, C rows of a chunk or block, V vocabulary, H hidden width, K entries.

A chunk of rows is projected into one buffer and walked over in blocks that stay in the processor's cache. Of a block, in fp32:

    the K + 1 most likely tokens; the label's logit z_y, and how many exceed it; then, with the K entries masked out and
    shift = the largest logit of the rest (entry K + 1),
    tail_sum = sum_v 2^u_v and tail_moment = sum_v u_v 2^u_v,   u_v = (z_v - shift) / ln 2.

All else follows per token from these few numbers and the entries' logits, in float64: partition, entropy and tails are sums of
terms of one sign, so that a tail of 1e-20 is as exact as one of 0.1. The shift lets no tail underflow. `exp2` because on a CPU
it takes a third of the time of torch's `exp`, and half of that of its softmax.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from components.objectives.head import Head, project_rows, rows_per_block, rows_per_chunk, slices
from components.objectives.sparse_target import MASKED_LOGIT
from components.teacher_cache.top_entries import top_entries

CHUNK_ROWS_CPU = 512
"""More bytes than the training's chunk: each product reads the whole head anew, and a chunk has one here, not three."""
LN_2 = math.log(2)
LEAST_SHIFT = -1e20
"""Where the rest has logits of -inf only: far from any logit, and so far above MASKED_LOGIT that the entries stay masked."""


@dataclass(frozen=True)
class ReducedLaws:
    """What is kept of N tokens' laws, on the CPU; K = max_entries, or V where that is smaller. Logprobs are in nats.

    `outside_logprob_NK[n, k - 1]` belongs to the first k entries. A probability below 1e-300 counts as nothing, too.
    """

    entry_ids_NK: Tensor
    """int32, by descending probability, equal ones by ascending id."""
    entry_logprobs_NK: Tensor
    """float32, of the full softmax at `temperature`."""
    outside_logprob_NK: Tensor
    """float32, at `temperature`: log of the probability outside the first k entries; -inf where nothing is outside."""
    label_logprob_N: Tensor
    """float32, at temperature 1, as all that follows. Not finite where a logit was NaN or inf, or the label's was -inf."""
    label_rank_N: Tensor
    """int32: how many tokens are strictly more likely than the label."""
    entropy_N: Tensor
    """float32, of the full law."""
    log_partition_N: Tensor
    """float32: logsumexp of the logits, scaled and capped."""
    margin_N: Tensor
    """float32: largest minus second largest logit; inf where there is one token only."""


class Scratch:
    """Memory that calls share: a fresh chunk would be paged in again for every batch."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, num_rows: int, like_CV: Tensor, dtype: torch.dtype, num_columns: int) -> Tensor:
        """[rows, columns] of whatever was there before, on the device of `like_CV`."""
        size, device = num_rows * num_columns, like_CV.device
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size or memory.dtype != dtype or memory.device != device:
            self._memory[name] = memory = torch.empty(size, dtype=dtype, device=device)
        return memory[:size].view(num_rows, num_columns)


class _RowSums(NamedTuple):
    """What the walk over a block of logits leaves, per token; `top_` columns are one more than the entries where V has more."""

    top_ids_CL: Tensor
    top_logits_CL: Tensor
    label_logit_C1: Tensor
    num_above_C1: Tensor
    shift_C1: Tensor
    """In units of ln 2, and negative: what was added to logit / ln 2."""
    tail_sum_C1: Tensor
    tail_moment_C1: Tensor
    tempered_sum_C1: Tensor
    """sum_v 2^(u_v / temperature)."""


@torch.no_grad()
def reduce_hidden(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    *,
    max_entries: int,
    temperature: float,
    chunk_bytes: int | None = None,
    scratch: Scratch | None = None,
) -> ReducedLaws:
    """The laws at these hidden states. Products are in the head's dtype, everything after them in fp32 or better."""
    assert hidden_NH.dtype == head.weight_VH.dtype, f"hidden states are {hidden_NH.dtype}, the head is {head.weight_VH.dtype}"
    scratch, num_columns = scratch or Scratch(), head.num_columns
    blocks: list[_RowSums] = []
    for chunk in slices(0, len(hidden_NH), _rows_per_product(hidden_NH, num_columns, chunk_bytes)):
        logits_CV = scratch.take("chunk", chunk.stop - chunk.start, hidden_NH, hidden_NH.dtype, num_columns)
        project_rows(head, hidden_NH[chunk], logits_CV)
        blocks += _reduce_rows(logits_CV, labels_N[chunk], max_entries, temperature, scratch, head.softcap, owned=True)
    return _finish(blocks, min(max_entries, num_columns), temperature)


@torch.no_grad()
def reduce_logits(
    logits_NV: Tensor, labels_N: Tensor, *, max_entries: int, temperature: float, scratch: Scratch | None = None
) -> ReducedLaws:
    """The same from whole logits, scaled and capped, which stay as they are: for a model whose head is no plain projection."""
    blocks = _reduce_rows(logits_NV, labels_N, max_entries, temperature, scratch or Scratch(), None, owned=False)
    return _finish(list(blocks), min(max_entries, logits_NV.shape[1]), temperature)


def _rows_per_product(hidden_NH: Tensor, num_columns: int, chunk_bytes: int | None) -> int:
    """Rows of a chunk within the budget, and about as many in the last one: products of a few rows are slow."""
    most = rows_per_chunk(num_columns, hidden_NH.element_size(), hidden_NH.device, chunk_bytes)
    if chunk_bytes is None and hidden_NH.device.type == "cpu":
        most = CHUNK_ROWS_CPU
    num_chunks = max(1, math.ceil(len(hidden_NH) / most))
    return max(1, math.ceil(len(hidden_NH) / num_chunks))


def _reduce_rows(
    logits_CV: Tensor,
    labels_C: Tensor,
    max_entries: int,
    temperature: float,
    scratch: Scratch,
    softcap: float | None,
    *,
    owned: bool,
) -> Iterator[_RowSums]:
    """Block by block. `owned`: fp32 logits may be overwritten; others are copied, a block at a time."""
    num_rows, num_columns = logits_CV.shape
    for rows in slices(0, num_rows, rows_per_block(num_columns, 4, logits_CV.device)):
        block_CV = logits_CV[rows]
        if not owned or block_CV.dtype != torch.float32:
            block_CV = scratch.take("block", len(block_CV), logits_CV, torch.float32, num_columns).copy_(block_CV)
        if softcap is not None:
            block_CV.div_(softcap).tanh_().mul_(softcap)  # not `cap_`: it makes the slope as well
        spare_CV = scratch.take("spare", len(block_CV), logits_CV, torch.float32, num_columns)
        yield _reduce_block_(block_CV, labels_C[rows, None], max_entries, temperature, spare_CV)


def _reduce_block_(logits_CV: Tensor, labels_C1: Tensor, max_entries: int, temperature: float, spare_CV: Tensor) -> _RowSums:
    """The sums of some rows; both [C, V] are overwritten."""
    top_ids_CL = top_entries(logits_CV, min(max_entries + 1, logits_CV.shape[1]))
    top_logits_CL = logits_CV.gather(1, top_ids_CL)
    label_logit_C1 = logits_CV.gather(1, labels_C1)
    # Comparing into floats and summing those takes a quarter of the time of counting booleans; exact below 2^24 columns.
    num_above_C1 = torch.gt(logits_CV, label_logit_C1, out=spare_CV).sum(1, keepdim=True)
    logits_CV.scatter_(1, top_ids_CL[:, :max_entries], MASKED_LOGIT)
    shift_C1 = top_logits_CL[:, -1:].clamp(min=LEAST_SHIFT).div_(-LN_2)
    powers_CV = torch.add(shift_C1, logits_CV, alpha=1 / LN_2, out=logits_CV)
    tempered_sum_C1 = shift_C1
    if temperature != 1.0:
        tempered_sum_C1 = torch.mul(powers_CV, 1 / temperature, out=spare_CV).exp2_().sum(1, keepdim=True)
    tail_sum_C1 = torch.exp2(powers_CV, out=spare_CV).sum(1, keepdim=True)
    tail_moment_C1 = _sum_finite_(powers_CV.mul_(spare_CV))
    return _RowSums(
        top_ids_CL, top_logits_CL, label_logit_C1, num_above_C1, shift_C1, tail_sum_C1, tail_moment_C1, tempered_sum_C1
    )


def _sum_finite_(moments_CV: Tensor) -> Tensor:
    """Sums, [C, 1], in which a logit of -inf counts nothing: its 0 * -inf shows in the result, so that looking for it is free."""
    sum_C1 = moments_CV.sum(1, keepdim=True)
    return sum_C1 if math.isfinite(sum_C1.sum()) else moments_CV.nan_to_num_(nan=0.0).sum(1, keepdim=True)


def _finish(blocks: list[_RowSums], num_entries: int, temperature: float) -> ReducedLaws:
    """Small numbers only, [N, K]: in float64, where neither a tail nor the difference of two large logits is lost."""
    if not blocks:
        return _no_laws(num_entries)
    sums = _RowSums(*(torch.cat(columns).cpu() for columns in zip(*blocks, strict=True)))
    logits_NK = sums.top_logits_CL[:, :num_entries].double()
    shift_N1, tail_sum_N1 = sums.shift_C1.double(), sums.tail_sum_C1.double()
    outside_NK, log_partition_N1 = _outside(logits_NK, (tail_sum_N1.log2() - shift_N1) * LN_2)
    logprobs_NK = logits_NK - log_partition_N1
    tail_surprise_N1 = log_partition_N1 - (sums.tail_moment_C1 / tail_sum_N1 - shift_N1) * LN_2
    entropy_N = _entropy(logprobs_NK, outside_NK[:, -1], tail_surprise_N1[:, 0])
    if temperature != 1.0:
        tempered_tail_N1 = (sums.tempered_sum_C1.double().log2() - shift_N1 / temperature) * LN_2
        outside_NK, tempered_partition_N1 = _outside(logits_NK / temperature, tempered_tail_N1)
        logprobs_NK = logits_NK / temperature - tempered_partition_N1
    return ReducedLaws(
        entry_ids_NK=sums.top_ids_CL[:, :num_entries].int(),
        entry_logprobs_NK=logprobs_NK.float(),
        outside_logprob_NK=outside_NK.float(),
        label_logprob_N=(sums.label_logit_C1 - log_partition_N1)[:, 0].float(),
        label_rank_N=sums.num_above_C1[:, 0].int(),
        entropy_N=entropy_N.float(),
        log_partition_N=log_partition_N1[:, 0].float(),
        margin_N=_margin(sums.top_logits_CL),
    )


def _no_laws(num_entries: int) -> ReducedLaws:
    ids_NK, floats_NK, floats_N = torch.empty(0, num_entries, dtype=torch.int), torch.empty(0, num_entries), torch.empty(0)
    return ReducedLaws(ids_NK, floats_NK, floats_NK, floats_N, floats_N.int(), floats_N, floats_N, floats_N)


def _outside(logits_NK: Tensor, tail_logit_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the probability outside the first k entries, [N, K], and the log-partition, [N, 1]: summed up from the tail."""
    largest_N1 = logits_NK[:, :1]
    below_NK = torch.cat([logits_NK[:, 1:], tail_logit_N1], dim=1).sub_(largest_N1).exp_()
    outside_NK = below_NK.flip(1).cumsum(1).flip(1)
    log_total_N1 = outside_NK[:, :1].log1p()
    return outside_NK.log_().sub_(log_total_N1), largest_N1 + log_total_N1


def _entropy(logprobs_NK: Tensor, tail_logprob_N: Tensor, tail_surprise_N: Tensor) -> Tensor:
    """Mean surprise over the entries and, by its own mean, over the tail; what has no probability counts nothing."""
    entries_N = -(logprobs_NK.exp() * logprobs_NK.clamp(min=MASKED_LOGIT)).sum(1)
    tail_N = torch.where(torch.isneginf(tail_logprob_N), 0.0, tail_logprob_N.exp() * tail_surprise_N)
    return entries_N + tail_N


def _margin(top_logits_NL: Tensor) -> Tensor:
    if top_logits_NL.shape[1] == 1:
        return torch.full_like(top_logits_NL[:, 0], math.inf)
    return top_logits_NL[:, 0] - top_logits_NL[:, 1]
