"""Leaving prepared data behind: the splits, their counts, the identity that later stages check.

Everything is written as it is read, some thousand rows at a time.
"""

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from components.artifacts import write_json
from components.data.embedded_files import read_laws
from components.data.rendering import template_fingerprint, tokenizer_fingerprint
from components.data.source_files import SourceFile
from components.data.tokenized import SPLITS, RowWriter, TokenizedRows
from components.data_preparation.findings import kind_of_code
from components.data_preparation.frames import row_ids, targets_of_rows
from components.data_preparation.prepare import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROW_COLUMNS = [
    "parsed.place",
    "parsed.part",
    "parsed.schema",
    "tokenised.fingerprint",
    "tokenised.input_ids",
    "tokenised.is_target",
]


def write_splits(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", folder: Path, *, with_laws: bool = False) -> None:
    """train, validation and test as Arrow, the tokenizer with its template, and identity.json, which names only what training
    sees: so new held-out sets retrain nothing."""
    rows, found = prepared.rows, prepared.found
    with ExitStack() as stack:
        writers = [stack.enter_context(RowWriter(folder / f"{split}.arrow")) for split in SPLITS]
        for start, source, table in rows.tables(_ROW_COLUMNS):
            block = slice(start, start + table.num_rows)
            whole = _as_written(rows.sources[source], table, tokenizer if with_laws else None)
            for code, writer in enumerate(writers):
                writer.write(whole.filter(pa.array(found.is_used[block] & (found.split[block] == code))))
    tokenizer.save_pretrained(folder / "tokenizer")
    identity = {
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "template_fingerprint": template_fingerprint(tokenizer),
        "train_fingerprint": TokenizedRows(folder / "train.arrow").fingerprint,
    }
    write_json(folder / "identity.json", identity)


def _as_written(source: SourceFile, table: pa.Table, words: "PreTrainedTokenizerBase | None") -> pa.Table:
    laws = [None] * table.num_rows if words is None else _laws_as_json(source.path, table, words)
    columns = {
        "row_id": pa.array(row_ids(source.name, table)),
        "source": pa.array([source.name] * table.num_rows),
        "schema": table.column("parsed.schema"),
        "fingerprint": table.column("tokenised.fingerprint"),
        "input_ids": table.column("tokenised.input_ids"),
        "is_target": table.column("tokenised.is_target"),
        "laws": pa.array(laws, type=pa.string()),
    }
    return pa.table(columns)


def _laws_as_json(file: Path, table: pa.Table, tokenizer: "PreTrainedTokenizerBase") -> list[str | None]:
    """The true law of each target token, by token id, of the embedded world; the laws of exchanges that were cut off are left
    out. None for real data."""
    laws = read_laws(file)
    if laws is None:
        return [None] * table.num_rows
    counts = targets_of_rows(table.column("tokenised.is_target"))
    kept = [laws[place - 1][:count] for place, count in zip(table.column("parsed.place").to_pylist(), counts, strict=True)]
    as_ids = tokenizer.convert_tokens_to_ids
    return [json.dumps([{str(as_ids(word)): share for word, share in law.items()} for law in row]) for row in kept]


def count_rows(prepared: Prepared) -> dict[str, Any]:
    """counts.json: every row read is counted exactly once as used, quarantined or not drawn."""
    rows, found = prepared.rows, prepared.found
    used = {split: int((found.is_used & (found.split == code)).sum()) for code, split in enumerate(SPLITS)}
    kinds = Counter(str(kind_of_code(int(code))) for code in found.fault[found.fault != 0])
    num_in, num_read = len(rows), sum(prepared.num_read)
    assert num_in == sum(used.values()) + sum(kinds.values()) <= num_read, "a row was lost"
    schemas, targets, num_cut = Counter[str](), dict.fromkeys(SPLITS, 0), 0
    for start, _, table in rows.tables(["parsed.schema", "tokenised.is_target", "tokenised.num_turns_cut"]):
        block = slice(start, start + table.num_rows)
        is_used, counts = found.is_used[block], targets_of_rows(table.column("tokenised.is_target"))
        schemas.update(np.asarray(table.column("parsed.schema").fill_null("").to_pylist(), dtype=object)[is_used])
        num_cut += int((table.column("tokenised.num_turns_cut").fill_null(0).to_numpy()[is_used] > 0).sum())
        for code, split in enumerate(SPLITS):
            targets[split] += int(counts[is_used & (found.split[block] == code)].sum())
    return {
        "rows_read": num_read,
        "rows_not_drawn": num_read - num_in,
        "rows_in": num_in,
        "rows_used": used,
        "rows_quarantined": sum(kinds.values()),
        "quarantined_by_kind": dict(sorted(kinds.items())),
        "rows_cut": num_cut,
        "target_tokens": targets,
        "schemas": dict(sorted(schemas.items())),
    }
