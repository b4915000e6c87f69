"""quarantine.jsonl: every row that was drawn and is not used, with its place, its kind, its reason and its own text.

The text is read from the file once more, so it is the row as it stands there. What looks like a secret or personal data is not
written a second time.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.data.faults import FaultKind
from components.data.file_blocks import Block, read_block
from components.data_contract.personal_data import find_personal_data
from components.data_contract.quarantine import quarantine_line, reason_of_findings
from components.data_preparation.findings import kind_of_code
from components.data_preparation.frames import row_ids
from components.data_preparation.prepare import Prepared
from components.secrets_in_text import find_secrets

MAX_RAW_BYTES = 1 << 16
"""Of a row's own text."""
UNSAID = "the row holds what looks like a secret or personal data, so neither its text nor what is wrong with it is repeated"
_FAULT_COLUMNS = [
    "parsed.place",
    "parsed.part",
    "parsed.conversation",
    "parsed.fault",
    "tokenised.fault",
    "inspected.encoding_faults",
    "inspected.secrets",
    "inspected.personal_data",
    "inspected.language",
    "overlapped.ood_overlaps",
    "overlapped.test_overlaps",
]
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def write_quarantine(prepared: Prepared, file: Path) -> None:
    with file.open("w", encoding="utf-8") as out:
        for line in quarantine_lines(prepared):
            out.write(line + "\n")


def quarantine_lines(prepared: Prepared) -> Iterator[str]:
    rows, found = prepared.rows, prepared.found
    for start, source, table in rows.tables(_FAULT_COLUMNS):
        wrong = np.flatnonzero(found.fault[start : start + table.num_rows])
        if not len(wrong):
            continue
        names = row_ids(rows.sources[source].name, table)
        facts = table.take(wrong).to_pylist()
        texts = _own_texts(rows.block_of(start), facts)
        for position, row in zip(wrong, facts, strict=True):
            number = start + int(position)
            kind = kind_of_code(int(found.fault[number]))
            assert kind is not None
            raw, num_bytes = texts[row["parsed.place"]]
            is_private = _is_private(raw) or any(row[f"inspected.{name}"] not in (None, "[]") for name in _PRIVATE)
            is_withheld = is_private and row["parsed.conversation"] is None
            yield quarantine_line(
                row_id=names[position],
                source=rows.sources[source].name,
                place=row["parsed.place"],
                kind=kind,
                reason=UNSAID if is_withheld else _reason(kind, row, number, prepared),
                raw=None if is_private else raw,
                raw_bytes=num_bytes if num_bytes > MAX_RAW_BYTES else None,
            )


_PRIVATE = ("secrets", "personal_data")


def _own_texts(block: Block | None, rows: Sequence[dict[str, Any]]) -> dict[int, tuple[str, int]]:
    """By the rows' places their text as it stands in the block, at most 64 KiB of each, and the bytes of the whole.

    Without a block (rows that come from no file) their turns.
    """
    if block is None:
        told = {row["parsed.place"]: row["parsed.conversation"] or "" for row in rows}
        return {place: (text[:MAX_RAW_BYTES], len(text.encode())) for place, text in told.items()}
    wanted = {row["parsed.place"] for row in rows}
    found = {}
    for raw in read_block(block):
        if raw.place in wanted:
            found[raw.place] = (raw.raw[:MAX_RAW_BYTES].decode("utf-8", "backslashreplace"), raw.num_bytes)
    assert len(found) == len(wanted), "the file changed while it was read"
    return found


def _is_private(raw: str) -> bool:
    """Does a row's text hold what looks like a secret or personal data, as it stands or behind JSON's escapes?"""
    return any(bool(secrets := find_secrets(text)) or bool(find_personal_data(text, secrets)) for text in (raw, _unescaped(raw)))


def _unescaped(raw: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _ESCAPED.get(found[2], found[2]), raw)


def _reason(kind: FaultKind, row: dict[str, Any], number: int, prepared: Prepared) -> str:
    repeated, nearly = (int(one[number]) for one in (prepared.found.repeats, prepared.found.nearly_repeats))
    told = {
        FaultKind.DUPLICATE: lambda: f"repeats {prepared.rows.row_id(repeated)}",
        FaultKind.NEAR_DUPLICATE: lambda: f"nearly repeats {prepared.rows.row_id(nearly)}",
        FaultKind.OOD_OVERLAP: lambda: f"shares text with held-out items: {row['overlapped.ood_overlaps']}",
        FaultKind.TEST_OVERLAP: lambda: f"shares text with in-domain test rows: {row['overlapped.test_overlaps']}",
        FaultKind.ENCODING: lambda: reason_of_findings(kind, json.loads(row["inspected.encoding_faults"])),
        FaultKind.SECRET: lambda: reason_of_findings(kind, json.loads(row["inspected.secrets"])),
        FaultKind.PERSONAL_DATA: lambda: reason_of_findings(kind, json.loads(row["inspected.personal_data"])),
        FaultKind.LANGUAGE: lambda: f"written in {row['inspected.language']!r}, which is not among data_contract.languages",
    }
    return told[kind]() if kind in told else str(row["parsed.fault"] or row["tokenised.fault"])
