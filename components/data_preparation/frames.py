"""The rows as Great Expectations sees them: flat frames, some thousand rows at a time (list columns crash it).

RAW: one row for each that was drawn, whether it is used or not. TOKENISED: one for each that is used.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.data.tokenized import SPLITS
from components.data_preparation.drawn_rows import DrawnRows, row_name
from components.data_preparation.findings import KINDS, NONE, Findings
from components.data_preparation.splits import TRAIN
from components.data_preparation.target_text import targets_say_the_answers

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerBase

_RAW_COLUMNS = [
    "parsed.place",
    "parsed.part",
    "parsed.schema",
    "inspected.num_turns",
    "inspected.prompt_characters",
    "inspected.target_characters",
    "inspected.language",
    "inspected.encoding_faults",
    "inspected.secrets",
    "inspected.personal_data",
    "inspected.answer_is_well_formed",
    "overlapped.ood_overlaps",
    "overlapped.test_overlaps",
]
_TOKENISED_COLUMNS = [
    "parsed.place",
    "parsed.part",
    "parsed.conversation",
    "tokenised.input_ids",
    "tokenised.is_target",
    "tokenised.num_turns_cut",
    "tokenised.end_of_turn_is_target",
]
_SPLIT_NAMES = np.array(SPLITS, dtype=object)
_KIND_NAMES = np.array(["", *KINDS], dtype=object)


def raw_frames(rows: DrawnRows, found: Findings) -> Iterator["DataFrame"]:
    import pandas

    for start, source, table in rows.tables(_RAW_COLUMNS):
        block = slice(start, start + table.num_rows)
        is_train = found.split[block] == TRAIN
        is_parsed = table.column("inspected.num_turns").fill_null(0).to_numpy() > 0
        repeats = found.repeats[block]
        is_other = (repeats != NONE) & (found.split[repeats] != found.split[block])
        yield pandas.DataFrame(
            {
                "row_id": row_ids(rows.sources[source].name, table),
                "split": np.where(is_parsed, _SPLIT_NAMES[found.split[block]], ""),
                "source": rows.sources[source].name,
                "schema": _texts(table, "parsed.schema"),
                "fault_kind": [str(kind) for kind in _KIND_NAMES[found.fault[block]]],
                "num_turns": _numbers(table, "inspected.num_turns"),
                "prompt_characters": _numbers(table, "inspected.prompt_characters"),
                "target_characters": _numbers(table, "inspected.target_characters"),
                "repeats_row": _names(rows, repeats, repeats != NONE),
                "nearly_repeats_row": _names(rows, found.nearly_repeats[block], found.nearly_repeats[block] != NONE),
                "repeats_row_of_other_split": _names(rows, repeats, is_other),
                "ood_overlap": _first_names(table, "overlapped.ood_overlaps", is_train),
                "test_overlap": _first_names(table, "overlapped.test_overlaps", is_train),
                "num_encoding_faults": _counts(table, "inspected.encoding_faults"),
                "num_secrets": _counts(table, "inspected.secrets"),
                "num_personal_data": _counts(table, "inspected.personal_data"),
                "language": _texts(table, "inspected.language"),
                "answer_is_well_formed": _optional(table, "inspected.answer_is_well_formed"),
            }
        )


def tokenised_frames(rows: DrawnRows, found: Findings, tokenizer: "PreTrainedTokenizerBase") -> Iterator["DataFrame"]:
    import pandas

    for start, source, table in rows.tables(_TOKENISED_COLUMNS):
        is_used = found.is_used[start : start + table.num_rows]
        if not is_used.any():
            continue
        table = table.filter(pa.array(is_used))
        frame = pandas.DataFrame(
            {
                "row_id": row_ids(rows.sources[source].name, table),
                "split": _SPLIT_NAMES[found.split[start : start + len(is_used)][is_used]],
                "source": rows.sources[source].name,
                "num_tokens": pc.list_value_length(table.column("tokenised.input_ids")).to_numpy().astype(np.int64),
                "num_target_tokens": targets_of_rows(table.column("tokenised.is_target")),
                "num_turns_cut": _numbers(table, "tokenised.num_turns_cut"),
                "end_of_turn_is_target": table.column("tokenised.end_of_turn_is_target").to_numpy(zero_copy_only=False),
                "targets_decode_to_text": targets_say_the_answers(table, tokenizer),
            }
        )
        yield frame


def row_ids(source: str, table: pa.Table) -> list[str]:
    places, parts = table.column("parsed.place").to_pylist(), table.column("parsed.part").to_pylist()
    return [row_name(source, place, part) for place, part in zip(places, parts, strict=True)]


def targets_of_rows(column: pa.ChunkedArray) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Number of targets of each row, [R]; the column holds a list of marks for each."""
    counts = []
    for part in column.chunks:
        marks = part.flatten().to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(marks, dtype=np.int64)])
        offsets = part.offsets.to_numpy() - part.offsets[0].as_py()
        counts.append(ends[offsets[1:]] - ends[offsets[:-1]])
    return np.concatenate(counts) if counts else np.empty(0, dtype=np.int64)


def _texts(table: pa.Table, column: str) -> Any:
    return table.column(column).fill_null("").to_numpy(zero_copy_only=False)


def _numbers(table: pa.Table, column: str) -> Any:
    return table.column(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _optional(table: pa.Table, column: str) -> Any:
    return np.array(table.column(column).to_pylist(), dtype=object)


def _counts(table: pa.Table, column: str) -> Any:
    """Length of each JSON list; nearly all are empty."""
    return np.array([0 if text == "[]" else len(json.loads(text)) for text in table.column(column).fill_null("[]").to_pylist()])


def _first_names(table: pa.Table, column: str, wanted: Any) -> Any:
    texts = table.column(column).fill_null("[]").to_pylist()
    names = [json.loads(text)[0] if want and text != "[]" else None for text, want in zip(texts, wanted, strict=True)]
    return np.array(names, dtype=object)


def _names(rows: DrawnRows, numbers: Any, wanted: Any) -> Any:
    names = np.full(len(numbers), None, dtype=object)
    for position in np.flatnonzero(wanted):
        names[position] = rows.row_id(int(numbers[position]))
    return names
