"""From the teacher's laws to the numbers of the cache, and back.

Shapes: N tokens, K entries of a token at most, M entries of all tokens, V vocabulary.

How many entries a token keeps follows its uncertainty: the smallest number whose tail is at most `tail_mass`. A probability p is
stored as the integer round(sqrt(p) * (2**bits - 1)), at least 1. Steps of equal size in sqrt(p) are steps of equal size in
KL divergence (near a law, KL is twice the squared distance of the square roots), so no bits are spent on precision that nobody
feels: 12 bits have the error of fp16 logprobs in three quarters of the space.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.teacher_cache.integer_packing import EntryLayout, pack_integers, packed_bytes, unpack_integers
from components.teacher_cache.reduction import ReducedLaws

Array = npt.NDArray[Any]
MAX_RANK = 2**16 - 1
COLUMNS: dict[str, str] = {
    "num_entries": "<u1",
    "tail_logprob": "<f2",
    "label_logprob": "<f4",
    "label_rank": "<u2",
    "entropy": "<f2",
    "log_partition": "<f4",
    "margin": "<f2",
}
"""One number per token each; beside them the packed entries. Their order is the order in which a record's checksum takes them."""
STATISTICS = ("label_logprob", "label_rank", "entropy", "log_partition", "margin")
"""Those that say something of the exact law, which imported laws may not know: then they are NaN, or MAX_RANK."""


@dataclass(frozen=True)
class EncodedTokens:
    """The columns, [N], and the entries of all tokens one after the other, [M]."""

    columns: dict[str, Array]
    entry_ids_M: npt.NDArray[np.int32]
    entry_codes_M: npt.NDArray[np.int32]


def encode(laws: ReducedLaws, tail_mass: float, probability_bits: int, available_N: Tensor | None = None) -> EncodedTokens:
    """Cut every token's entries where its tail is small enough, and round to what is stored.

    `available_N`: how many of a token's entries there are, where some have fewer than K.
    """
    kept_N = choose_num_entries(laws.outside_logprob_NK, tail_mass)
    if available_N is not None:
        kept_N = kept_N.minimum(available_N)
    is_kept_NK = torch.arange(laws.entry_ids_NK.shape[1]) < kept_N[:, None]
    tail_N = laws.outside_logprob_NK.gather(1, kept_N[:, None] - 1).squeeze(1)
    values = {
        "num_entries": kept_N,
        "tail_logprob": tail_N,
        "label_logprob": laws.label_logprob_N,
        "label_rank": laws.label_rank_N.clamp(max=MAX_RANK),
        "entropy": laws.entropy_N,
        "log_partition": laws.log_partition_N,
        "margin": laws.margin_N.clamp(max=torch.finfo(torch.float16).max),
    }
    return EncodedTokens(
        {name: values[name].numpy().astype(dtype) for name, dtype in COLUMNS.items()},
        laws.entry_ids_NK[is_kept_NK].numpy(),
        probability_codes(laws.entry_logprobs_NK[is_kept_NK], probability_bits),
    )


def choose_num_entries(outside_logprob_NK: Tensor, tail_mass: float) -> Tensor:
    """The smallest number of entries outside which at most `tail_mass` is left, else all K; [N], at least 1."""
    is_too_much_NK = outside_logprob_NK.exp() > tail_mass
    return (is_too_much_NK.sum(1) + 1).clamp(max=outside_logprob_NK.shape[1])


def probability_codes(logprobs_M: Tensor, bits: int) -> npt.NDArray[np.int32]:
    largest = 2**bits - 1
    codes_M: npt.NDArray[np.int32] = (logprobs_M.double().mul(0.5).exp() * largest).round().clamp(1, largest).int().numpy()
    return codes_M


@lru_cache(maxsize=4)
def logprob_of_code(bits: int) -> npt.NDArray[np.float32]:
    """Logprob of every code, [2**bits]; code 0 is never written."""
    with np.errstate(divide="ignore"):
        logprobs: npt.NDArray[np.float32] = (2 * np.log(np.arange(2**bits) / (2**bits - 1))).astype(np.float32)
    return logprobs


def pack_record(entry_ids_M: Array, entry_codes_M: Array, layout: EntryLayout) -> bytes:
    """The entries of one record: all ids, then all probabilities."""
    return pack_integers(entry_ids_M, layout.id_bits) + pack_integers(entry_codes_M, layout.probability_bits)


def unpack_record(
    packed: npt.NDArray[np.uint8], count: int, layout: EntryLayout
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Token ids and logprobs of a record's `count` entries, [M] each."""
    ids_M = unpack_integers(packed, count, layout.id_bits)
    codes_M = unpack_integers(packed[packed_bytes(count, layout.id_bits) :], count, layout.probability_bits)
    return ids_M, logprob_of_code(layout.probability_bits).take(codes_M)


def pad_entries(
    ids_M: npt.NDArray[np.int32], logprobs_M: npt.NDArray[np.float32], num_entries_N: npt.NDArray[np.integer]
) -> tuple[Tensor, Tensor]:
    """Ragged entries as rectangles, [N, K] each: an empty place repeats the token's first id, with logprob -inf."""
    width = int(num_entries_N.max(initial=1))
    if len(ids_M) == width * len(num_entries_N):  # nothing is empty
        return torch.from_numpy(ids_M.reshape(-1, width)), torch.from_numpy(logprobs_M.reshape(-1, width))
    is_entry_NK = np.arange(width) < num_entries_N[:, None]
    starts_N = np.cumsum(num_entries_N, dtype=np.int64) - num_entries_N
    ids_NK = np.repeat(ids_M[starts_N][:, None], width, axis=1) if len(ids_M) else np.zeros(is_entry_NK.shape, dtype=np.int32)
    logprobs_NK = np.full(is_entry_NK.shape, -np.inf, dtype=np.float32)
    ids_NK[is_entry_NK] = ids_M
    logprobs_NK[is_entry_NK] = logprobs_M
    return torch.from_numpy(ids_NK), torch.from_numpy(logprobs_NK)
