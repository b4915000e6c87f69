"""From the teacher's final hidden states to what the cache keeps of each token, fused with the head: [N, V] is never held.

Shapes: N tokens, C rows of a chunk or block, V vocabulary, H hidden width, K entries.

A chunk of rows is projected into one buffer and walked over in blocks that stay in the processor's cache. Of a block, in fp32:

    the K + 1 most likely tokens; the label's logit z_y, and how many exceed it; then, with the K entries masked out and
    shift = the largest logit of the rest (entry K + 1),
    tail_sum = sum_v 2^u_v and tail_moment = sum_v u_v 2^u_v,   u_v = (z_v - shift) / ln 2.

All else follows per token from these few numbers and the entries' logits, in float64: partition, entropy and the tails are sums of
terms of one sign, so that a tail of 1e-20 is as exact as one of 0.1. The shift lets no tail underflow. `exp2` because it takes
a third of the time of torch's `exp`, and half of that of its softmax.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from components.objectives.head import Head, project_rows, rows_per_block, rows_per_chunk, slices
from components.objectives.sparse_target import MASKED_LOGIT
from components.teacher_cache.top_entries import top_entries

CHUNK_BYTES_CPU = 256 * 2**20
"""More than the training's chunk: there is one product here, not three, and each chunk reads the whole head anew."""
LN_2 = math.log(2)


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


@dataclass(frozen=True)
class _RowSums:
    """What one block's walk over its logits leaves, per token; `top_` columns are one more than the entries where V has more."""

    top_ids_NL: Tensor
    top_logits_NL: Tensor
    label_logit_N: Tensor
    num_above_N: Tensor
    shift_N: Tensor
    """In units of ln 2, and negative: what was added to logit / ln 2."""
    tail_sum_N: Tensor
    tail_moment_N: Tensor
    tempered_sum_N: Tensor
    """sum_v 2^(u_v / temperature)."""

    @staticmethod
    def allocate(num_tokens: int, num_top: int, device: torch.device) -> "_RowSums":
        columns = torch.empty(6, num_tokens, device=device).unbind(0)
        ids_NL = torch.empty(num_tokens, num_top, dtype=torch.long, device=device)
        return _RowSums(ids_NL, torch.empty(num_tokens, num_top, device=device), *columns)

    def rows(self, rows: slice) -> "_RowSums":
        return _RowSums(*(getattr(self, column.name)[rows] for column in fields(self)))

    def cpu(self) -> "_RowSums":
        return _RowSums(*(getattr(self, column.name).cpu() for column in fields(self)))


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
    scratch = scratch or Scratch()
    num_tokens, num_columns = len(hidden_NH), head.num_columns
    sums = _RowSums.allocate(num_tokens, min(max_entries + 1, num_columns), hidden_NH.device)
    for chunk in slices(0, num_tokens, _even_rows(hidden_NH, num_columns, chunk_bytes)):
        logits_CV = scratch.take("chunk", chunk.stop - chunk.start, hidden_NH, hidden_NH.dtype, num_columns)
        project_rows(head, hidden_NH[chunk], logits_CV)
        _reduce_rows(logits_CV, labels_N[chunk], sums.rows(chunk), max_entries, temperature, scratch, head.softcap, owned=True)
    return _finish(sums.cpu(), max_entries, temperature)


@torch.no_grad()
def reduce_logits(
    logits_NV: Tensor, labels_N: Tensor, *, max_entries: int, temperature: float, scratch: Scratch | None = None
) -> ReducedLaws:
    """The same from whole logits, scaled and capped, which stay as they are: for a model whose head is no plain projection."""
    sums = _RowSums.allocate(len(logits_NV), min(max_entries + 1, logits_NV.shape[1]), logits_NV.device)
    _reduce_rows(logits_NV, labels_N, sums, max_entries, temperature, scratch or Scratch(), None, owned=False)
    return _finish(sums.cpu(), max_entries, temperature)


def _even_rows(hidden_NH: Tensor, num_columns: int, chunk_bytes: int | None) -> int:
    """Rows of a chunk within the budget, and about as many in the last one: products of a few rows are slow."""
    if chunk_bytes is None and hidden_NH.device.type == "cpu":
        chunk_bytes = CHUNK_BYTES_CPU
    most = rows_per_chunk(num_columns, hidden_NH.element_size(), hidden_NH.device, chunk_bytes)
    num_chunks = max(1, math.ceil(len(hidden_NH) / most))
    return max(1, math.ceil(len(hidden_NH) / num_chunks))


def _reduce_rows(
    logits_CV: Tensor,
    labels_C: Tensor,
    sums: _RowSums,
    max_entries: int,
    temperature: float,
    scratch: Scratch,
    softcap: float | None,
    *,
    owned: bool,
) -> None:
    """Fill `sums`, block by block. `owned`: fp32 logits may be overwritten; others are copied, a block at a time."""
    num_rows, num_columns = logits_CV.shape
    for rows in slices(0, num_rows, rows_per_block(num_columns, 4, logits_CV.device)):
        block_CV = logits_CV[rows]
        if not owned or block_CV.dtype != torch.float32:
            block_CV = scratch.take("block", len(block_CV), logits_CV, torch.float32, num_columns).copy_(block_CV)
        if softcap is not None:
            block_CV.div_(softcap).tanh_().mul_(softcap)  # not `cap_`: it makes the slope as well
        spare_CV = scratch.take("spare", len(block_CV), logits_CV, torch.float32, num_columns)
        _reduce_block_(block_CV, labels_C[rows], sums.rows(rows), max_entries, temperature, spare_CV)


def _reduce_block_(
    logits_CV: Tensor, labels_C: Tensor, sums: _RowSums, max_entries: int, temperature: float, spare_CV: Tensor
) -> None:
    """The sums of some rows; both [C, V] are overwritten."""
    top_ids_CL = top_entries(logits_CV, sums.top_ids_NL.shape[1])
    top_logits_CL = logits_CV.gather(1, top_ids_CL)
    label_logit_C1 = logits_CV.gather(1, labels_C[:, None])
    # Comparing into floats and summing those takes a quarter of the time of counting booleans; exact below 2^24 columns.
    sums.num_above_N.copy_(torch.gt(logits_CV, label_logit_C1, out=spare_CV).sum(1))
    logits_CV.scatter_(1, top_ids_CL[:, :max_entries], MASKED_LOGIT)
    shift_C1 = top_logits_CL[:, -1:].clamp(min=MASKED_LOGIT).div(-LN_2)
    powers_CV = torch.add(shift_C1, logits_CV, alpha=1 / LN_2, out=logits_CV)
    if temperature != 1.0:
        sums.tempered_sum_N.copy_(torch.mul(powers_CV, 1 / temperature, out=spare_CV).exp2_().sum(1))
    torch.exp2(powers_CV, out=spare_CV)
    sums.tail_sum_N.copy_(spare_CV.sum(1))
    sums.tail_moment_N.copy_(_sum_finite_(powers_CV.mul_(spare_CV)))
    sums.top_ids_NL.copy_(top_ids_CL)
    sums.top_logits_NL.copy_(top_logits_CL)
    sums.label_logit_N.copy_(label_logit_C1.squeeze(1))
    sums.shift_N.copy_(shift_C1.squeeze(1))


def _sum_finite_(moments_CV: Tensor) -> Tensor:
    """Sums, [C], in which a logit of -inf counts nothing: its 0 * -inf is found in the result, which costs no pass of its own."""
    sum_C = moments_CV.sum(1)
    return sum_C if bool(sum_C.isfinite().all()) else moments_CV.nan_to_num_(nan=0.0).sum(1)


def _finish(sums: _RowSums, max_entries: int, temperature: float) -> ReducedLaws:
    """Small numbers only, [N, K]: in float64, where neither a tail nor the difference of two large logits is lost."""
    logits_NK = sums.top_logits_NL[:, :max_entries].double()
    shift_N, tail_sum_N = sums.shift_N.double(), sums.tail_sum_N.double()
    outside_NK, log_partition_N = _outside(logits_NK, (tail_sum_N.log2() - shift_N) * LN_2)
    logprobs_NK = logits_NK - log_partition_N[:, None]
    entropy_N = _entropy(logprobs_NK, outside_NK[:, -1], log_partition_N - (sums.tail_moment_N / tail_sum_N - shift_N) * LN_2)
    if temperature != 1.0:
        tempered_tail_N = (sums.tempered_sum_N.double().log2() - shift_N / temperature) * LN_2
        outside_NK, tempered_partition_N = _outside(logits_NK / temperature, tempered_tail_N)
        logprobs_NK = logits_NK / temperature - tempered_partition_N[:, None]
    return ReducedLaws(
        entry_ids_NK=sums.top_ids_NL[:, :max_entries].int(),
        entry_logprobs_NK=logprobs_NK.float(),
        outside_logprob_NK=outside_NK.float(),
        label_logprob_N=(sums.label_logit_N - log_partition_N).float(),
        label_rank_N=sums.num_above_N.int(),
        entropy_N=entropy_N.float(),
        log_partition_N=log_partition_N.float(),
        margin_N=_margin(sums.top_logits_NL),
    )


def _outside(logits_NK: Tensor, tail_logit_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the probability outside the first k entries, [N, K], and the log-partition: summed up from the tail, never 1 - sum."""
    largest_N1 = logits_NK[:, :1]
    below_NK = torch.cat([logits_NK[:, 1:], tail_logit_N[:, None]], dim=1).sub_(largest_N1).exp_()
    outside_NK = below_NK.flip(1).cumsum(1).flip(1)
    log_total_N1 = (outside_NK[:, :1] + 1).log_()
    return outside_NK.log_().sub_(log_total_N1), (largest_N1 + log_total_N1).squeeze(1)


def _entropy(logprobs_NK: Tensor, tail_logprob_N: Tensor, tail_surprise_N: Tensor) -> Tensor:
    """Mean surprise over the entries and, by its own mean, over the tail; what has no probability counts nothing."""
    entries_N = -(logprobs_NK.exp() * logprobs_NK.clamp(min=MASKED_LOGIT)).sum(1)
    tail_N = torch.where(torch.isneginf(tail_logprob_N), 0.0, tail_logprob_N.exp() * tail_surprise_N)
    return entries_N + tail_N


def _margin(top_logits_NL: Tensor) -> Tensor:
    if top_logits_NL.shape[1] == 1:
        return torch.full_like(top_logits_NL[:, 0], math.inf)
    return top_logits_NL[:, 0] - top_logits_NL[:, 1]
