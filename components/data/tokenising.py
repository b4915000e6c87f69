"""From a column of conversations to a table of tokens: rendered, marked, checked and fingerprinted, batch by batch.

The tables are made of numpy arrays, not of a list for each row: the tokenizer shall be what takes the time.
"""

from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from components.artifacts import fingerprint_bytes
from components.data.chat_text import ChatText
from components.data.conversations import decode_conversation
from components.data.rendering import mark_batch
from components.data.target_marks import MarkedRow
from components.data.unrenderable import UnrenderableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENISED = pa.schema(
    [
        ("fingerprint", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("is_target", pa.list_(pa.bool_())),
        ("num_turns_cut", pa.int32()),
        ("end_of_turn_is_target", pa.bool_()),
        ("fault_kind", pa.string()),
        ("fault", pa.string()),
    ]
)
NOTHING = MarkedRow([], [], ChatText("", []), False, True)


def tokenise_table(
    conversations: "pa.Array | pa.ChunkedArray | list[str | None]", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> pa.Table:
    """One row of TOKENISED per conversation (a JSON list of [role, text]).

    A rejected one has no tokens and its fault; null, which an earlier pass has rejected, has no tokens and no fault.
    """
    texts = conversations if isinstance(conversations, list) else conversations.to_pylist()
    present = [(index, text) for index, text in enumerate(texts) if text is not None]
    chats = [decode_conversation(text) for _, text in present]
    rows = [NOTHING] * len(texts)
    faults: list[UnrenderableError | None] = [None] * len(texts)
    for (index, _), result in zip(present, mark_batch(chats, tokenizer, max_length), strict=True):
        if isinstance(result, UnrenderableError):
            faults[index] = result
        else:
            rows[index] = result
    return _table(rows, faults)


def _table(rows: list[MarkedRow], faults: list[UnrenderableError | None]) -> pa.Table:
    ids, is_target, offsets = _flatten(rows)
    columns = [
        pa.array(_fingerprints(ids, is_target, offsets), pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(is_target)),
        pa.array([row.num_turns_cut for row in rows], pa.int32()),
        pa.array([row.end_of_turn_is_target for row in rows], pa.bool_()),
        pa.array([None if fault is None else fault.kind.value for fault in faults], pa.string()),
        pa.array([None if fault is None else str(fault) for fault in faults], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=TOKENISED)


def _flatten(rows: list[MarkedRow]) -> tuple[Any, Any, Any]:
    """All ids [T], which of them are targets [T], and where each row begins and the last ends [R + 1]."""
    ids = array("i")
    assert ids.itemsize == 4
    offsets = [0]
    for row in rows:
        ids.extend(row.input_ids)
        offsets.append(len(ids))
    is_target = np.zeros(len(ids), dtype=bool)
    for row, start in zip(rows, offsets, strict=False):
        for begin, end in row.runs:
            is_target[start + begin : start + end] = True
    return np.array(ids, dtype=np.int32), is_target, np.array(offsets, dtype=np.int32)


def _fingerprints(ids: Any, is_target: Any, offsets: Any) -> list[str]:
    """`artifacts.fingerprint_row` of each row; "" where there is none."""
    bounds = offsets.tolist()
    return [
        fingerprint_bytes(ids[begin:end].tobytes(), is_target[begin:end].tobytes()) if end > begin else ""
        for begin, end in pairwise(bounds)
    ]
