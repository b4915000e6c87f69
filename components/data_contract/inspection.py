"""The facts of every conversation's text, as table columns: what the contract judges and the data card counts.

Pure functions of a table, for `datasets.map`: the same rows give the same bytes, in any process and on any day. Findings
are [kind, turn, offset] (turn from 0, offset in characters); no value that was found goes into a table, a log or an error.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from components.data_contract.encoding_faults import find_encoding_faults
from components.data_contract.languages import language_of
from components.data_contract.near_duplicates import band_hashes, shingles
from components.data_contract.overlap import DEFAULT_N, OverlapIndex, unit_hashes, units
from components.data_contract.personal_data import find_personal_data
from components.secrets_in_text import find_secrets
from components.text_spans import Span

Turns = list[list[str]]
MAX_FINDINGS = 100
"""Kept of one row and column: a broken book holds a fault in every word."""
MAX_NAMES = 3
MIN_QUESTION = 4
"""A question of fewer units ("What is up?") is asked in every set."""
MAX_SHARED = 10
"""An n-gram of more test rows than this belongs to their template."""
INSPECTED = pa.schema(
    [
        ("num_turns", pa.int32()),
        ("prompt_characters", pa.int64()),
        ("target_characters", pa.int64()),
        ("language", pa.string()),
        ("encoding_faults", pa.string()),
        ("secrets", pa.string()),
        ("personal_data", pa.string()),
        ("bands", pa.binary(128)),
        ("answer_is_well_formed", pa.bool_()),
    ]
)
OVERLAPS = pa.schema([("ood_overlaps", pa.string()), ("test_overlaps", pa.string())])
_LAST_LINE = re.compile(r"####[ ]?[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?\s*\Z")


def inspect_table(table: pa.Table) -> pa.Table:
    """INSPECTED columns of a table with `conversation` and `schema`; a rejected row (conversation null) has no facts."""
    conversations, schemas = table["conversation"].to_pylist(), table["schema"].to_pylist()
    rows = [_inspect(json.loads(text) if text else [], schema) for text, schema in zip(conversations, schemas, strict=True)]
    return pa.Table.from_pylist(rows, schema=INSPECTED)


def find_overlaps(table: pa.Table, ood: OverlapIndex, test: OverlapIndex | None = None) -> pa.Table:
    """OVERLAPS columns of a table with `conversation`: names of the held-out items that a row's turns repeat, at most 3.

    A pass of its own: the test rows are known after the split, and another OOD set inspects no text anew.
    """
    columns: dict[str, list[str]] = {name: [] for name in OVERLAPS.names}
    for text in table["conversation"].to_pylist():
        hashes = [unit_hashes(content) for _, content in json.loads(text)] if text else []
        for name, index in zip(OVERLAPS.names, (ood, test), strict=True):
            found = index.find_in_turns(hashes) if index is not None else []
            columns[name].append(json.dumps(found[:MAX_NAMES], ensure_ascii=False))
    return pa.table(columns, schema=OVERLAPS)


def index_of_questions(names: Sequence[str], conversations: Sequence[str], n: int = DEFAULT_N) -> OverlapIndex:
    """What the in-domain test rows ask, for find_overlaps; `conversations` as in the table.

    Answers stay out: in GSM8K every tenth one holds a sum that others work out, too (a whole repeated row is found by its
    content hash). Later turns stay out where they are shorter than n units ("Please go on."), first ones below MIN_QUESTION.
    A question that several rows ask is held once, so that only what different questions share is taken for their template.
    """
    first_of: dict[tuple[str, ...], tuple[str, str]] = {}
    for name, text in zip(names, conversations, strict=True):
        for number, content in enumerate(content for role, content in json.loads(text) if role == "user"):
            words = units(content)
            if len(words) >= (n if number else MIN_QUESTION):
                first_of.setdefault(tuple(words), (name, content))
    pairs = list(first_of.values())
    return OverlapIndex([name for name, _ in pairs], [text for _, text in pairs], n, max_ids=MAX_SHARED)


def _inspect(turns: Turns, schema: str | None) -> dict[str, Any]:
    contents = [content for _, content in turns]
    secrets = [find_secrets(content) for content in contents]
    personal_data = [find_personal_data(content, taken) for content, taken in zip(contents, secrets, strict=True)]
    num_target = sum(len(content) for role, content in turns if role == "assistant")
    return {
        "num_turns": len(turns),
        "prompt_characters": sum(map(len, contents)) - num_target,
        "target_characters": num_target,
        "language": language_of(contents),
        "encoding_faults": _as_json([find_encoding_faults(content) for content in contents]),
        "secrets": _as_json(secrets),
        "personal_data": _as_json(personal_data),
        "bands": _bands(contents),
        "answer_is_well_formed": is_well_formed_answer(contents[-1]) if schema == "gsm8k" and contents else None,
    }


def is_well_formed_answer(answer: str) -> bool:
    """GSM8K: one `####`, and after it one number that ends the answer."""
    return answer.count("####") == 1 and bool(_LAST_LINE.search(answer))


def _bands(contents: list[str]) -> bytes:
    return band_hashes(shingles(map(unit_hashes, contents))).astype("<u8").tobytes()


def _as_json(spans_of_turns: list[list[Span]]) -> str:
    found = [[span.kind, turn, span.start] for turn, spans in enumerate(spans_of_turns) for span in spans]
    return json.dumps(found[:MAX_FINDINGS])


def bands_of(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The `bands` column as [R, 16]: what near_duplicate_groups takes. Null (a rejected row) is a row of zeros."""
    raw = b"".join(value if value is not None else bytes(128) for value in column.to_pylist())
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 16)
