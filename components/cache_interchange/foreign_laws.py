"""A law as another project stored it, checked and put into our terms: sorted entries, what is outside, what is known of a label.

Our own cache stores the tail and the statistics of the exact law; a foreign one cannot, so this is lost, and nothing here
pretends otherwise:

    tail            1 - sum of the entries, so as good as their rounding; never below TAIL_FLOOR, and at the floor meaningless
    label           its logprob is known where it is among the entries, its rank where the format tells or the entries do
    entropy, log-partition, margin of the logits, and the gain of anything computed from them: not known at all

Entries that sum to more than 1 (rounding, or a curve that was fitted to them) are scaled to 1.

Shapes: T predicted tokens of one record (all but the first), K the most entries that any of them has.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TAIL_FLOOR = -24 * math.log(2.0)
"""Log of 2^-24: the sum of fp32 logprobs does not tell a smaller remainder from rounding."""
MAX_TOTAL = 1.001
"""What the probabilities of fp32 logprobs may sum to before they are no law."""


@dataclass(frozen=True)
class ForeignLaws:
    """Top-K laws of one record's predicted tokens: index t is the law of input_ids[t + 1]."""

    entry_ids_TK: npt.NDArray[np.int32]
    """Padded with 0. The most likely tokens, and the label where the format adds it to them."""
    entry_logprobs_TK: npt.NDArray[np.float32]
    """Descending, padded with -inf."""
    num_entries_T: npt.NDArray[np.int32]
    label_logprob_T: npt.NDArray[np.float32]
    """NaN where the label is not among the entries."""
    label_rank_T: npt.NDArray[np.int32]
    """0 for the most likely token; -1 where it is not known."""
    tail_logprob_T: npt.NDArray[np.float32]
    """-inf only where the entries are the whole vocabulary."""


@dataclass(frozen=True)
class ForeignRecord:
    place: str
    """`file:line`, or `file:row group/row`."""
    input_ids: list[int]
    laws: ForeignLaws


def check_input_ids(input_ids: Ints, vocabulary_size: int, place: str) -> None:
    outside = np.flatnonzero((input_ids < 0) | (input_ids >= vocabulary_size))
    if len(input_ids) == 0:
        raise DataError(f"{place}: no input ids. Remove the record")
    if len(outside):
        raise DataError(
            f"{place}: input id {input_ids[outside[0]]} of token {outside[0]} is outside the vocabulary of {vocabulary_size}. "
            "Use the tokenizer that the capture used"
        )


def build_laws(
    ids_TK: Ints,
    logprobs_TK: Floats,
    labels_T: Ints,
    vocabulary_size: int,
    place: str,
    *,
    told_rank_T: Ints | None,
    max_total: float = MAX_TOTAL,
    num_checked: int | None = None,
) -> ForeignLaws:
    """Checks and sorts the entries of one record; where the logprob is -inf there is none.

    `told_rank_T`: the label's rank where the format tells it, else -1; None where the entries stand in the order of their ranks.
    Only the first `num_checked` columns must sum to `max_total` at most: the others are known to be approximate.
    """
    is_entry_TK = logprobs_TK != -np.inf
    _check_entries(ids_TK, logprobs_TK, is_entry_TK, vocabulary_size, place)
    _check_totals(logprobs_TK[:, :num_checked], max_total, place)
    if told_rank_T is None:
        told_rank_T = _first_column((ids_TK == labels_T[:, None]) & is_entry_TK)
    order_TK = np.argsort(-logprobs_TK, axis=1, kind="stable")
    num_entries_T = is_entry_TK.sum(axis=1)
    width = int(num_entries_T.max(initial=0))
    ids_TK = np.take_along_axis(np.where(is_entry_TK, ids_TK, 0), order_TK, axis=1)[:, :width]
    logprobs_TK = np.take_along_axis(logprobs_TK, order_TK, axis=1)[:, :width]
    logprobs_TK, tail_T = _leave_room_for_tail(logprobs_TK, num_entries_T == vocabulary_size)
    label_logprob_T, label_rank_T = _find_labels(ids_TK, logprobs_TK, num_entries_T, labels_T, vocabulary_size, told_rank_T)
    return ForeignLaws(
        entry_ids_TK=ids_TK.astype(np.int32),
        entry_logprobs_TK=logprobs_TK.astype(np.float32),
        num_entries_T=num_entries_T.astype(np.int32),
        label_logprob_T=label_logprob_T.astype(np.float32),
        label_rank_T=label_rank_T.astype(np.int32),
        tail_logprob_T=tail_T.astype(np.float32),
    )


def _check_entries(
    ids_TK: Ints, logprobs_TK: Floats, is_entry_TK: npt.NDArray[np.bool_], vocabulary_size: int, place: str
) -> None:
    broken_TK = is_entry_TK & ~np.isfinite(logprobs_TK)
    if broken_TK.any():
        token, entry = np.argwhere(broken_TK)[0]
        raise DataError(
            f"{place}: token {token + 1}: the logprob of id {ids_TK[token, entry]} is {logprobs_TK[token, entry]}. "
            "Remove the record, or capture it again"
        )
    outside_TK = is_entry_TK & ((ids_TK < 0) | (ids_TK >= vocabulary_size))
    if outside_TK.any():
        token, entry = np.argwhere(outside_TK)[0]
        raise DataError(
            f"{place}: token {token + 1}: id {ids_TK[token, entry]} is outside the vocabulary of {vocabulary_size}. "
            "Use the vocabulary that the capture used"
        )
    empty_T = ~is_entry_TK.any(axis=1)
    if empty_T.any():
        raise DataError(f"{place}: token {int(empty_T.argmax()) + 1}: no entries. Remove the record, or capture it again")
    unique_TK = np.sort(np.where(is_entry_TK, ids_TK, -1 - np.arange(ids_TK.shape[1])), axis=1)
    twice_TK = unique_TK[:, 1:] == unique_TK[:, :-1]
    if twice_TK.any():
        token, entry = np.argwhere(twice_TK)[0]
        raise DataError(f"{place}: token {token + 1}: id {unique_TK[token, entry]} occurs twice. Capture the record again")


def _check_totals(logprobs_TK: Floats, max_total: float, place: str) -> None:
    with np.errstate(over="ignore"):
        total_T = np.exp(logprobs_TK).sum(axis=1)
    if (total_T > max_total).any():
        token = int(total_T.argmax())
        raise DataError(
            f"{place}: token {token + 1}: probabilities sum to {total_T[token]:.6g}, more than {max_total}. "
            "They must be logprobs of the full softmax at temperature 1, not logits"
        )


def _leave_room_for_tail(logprobs_TK: Floats, is_whole_T: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Entries that sum to 1 at most, and log(1 - sum) in float64, cut at the floor."""
    logprobs_TK = logprobs_TK.astype(np.float32).astype(np.float64)
    total_T = np.exp(logprobs_TK).sum(axis=1)
    logprobs_TK = logprobs_TK - np.log(np.maximum(total_T, 1.0))[:, None]
    tail_T = np.log1p(-np.minimum(total_T, 1 - math.exp(TAIL_FLOOR)))
    return logprobs_TK, np.where(is_whole_T, -np.inf, tail_T)


def _find_labels(
    ids_TK: Ints, logprobs_TK: Floats, num_entries_T: Ints, labels_T: Ints, vocabulary_size: int, told_rank_T: Ints
) -> tuple[Floats, Ints]:
    """The label's logprob and rank. The least likely entry may be a label that was added: its rank only the format can tell."""
    column_T = _first_column((ids_TK == labels_T[:, None]) & (logprobs_TK > -np.inf))
    is_found_T = column_T >= 0
    logprob_T = np.full(len(labels_T), np.nan)
    logprob_T[is_found_T] = logprobs_TK[is_found_T, column_T[is_found_T]]
    is_above_another_T = (column_T < num_entries_T - 1) | (num_entries_T == vocabulary_size)
    place_T = (logprobs_TK > logprob_T[:, None]).sum(axis=1)
    rank_T = np.where(is_found_T & is_above_another_T, place_T, -1)
    return logprob_T, np.where(told_rank_T >= 0, told_rank_T, rank_T)


def _first_column(holds_TK: npt.NDArray[np.bool_]) -> Ints:
    """The first column that holds, or -1, [T]."""
    if not holds_TK.shape[1]:
        return np.full(len(holds_TK), -1, dtype=np.int64)
    return np.where(holds_TK.any(axis=1), holds_TK.argmax(axis=1), -1)
