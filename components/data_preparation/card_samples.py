"""Rows to look at, for the data card: a few of the training rows, and the first that were set aside for each reason."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from components.data_contract.personal_data import find_personal_data
from components.data_preparation.card_sizes import RowSizes
from components.data_preparation.drawn_rows import DrawnRows
from components.data_preparation.findings import Findings, is_listed
from components.data_preparation.splits import TRAIN
from components.secrets_in_text import find_secrets

MAX_EXAMPLES = 6
MAX_EXAMPLES_OF_SOURCE = 2
MAX_TURNS = 8
MAX_CHARACTERS = 600
MAX_QUARANTINED = 3
MAX_REASON = 200
NOT_REPEATED = "its reason quotes what looks like a secret or personal data: it stands in quarantine.jsonl"


def example_rows(rows: DrawnRows, found: Findings, sizes: RowSizes) -> list[dict[str, Any]]:
    """Training rows with the smallest content hashes: the same ones as long as they are there, whatever else is added.

    None with a secret or personal data in it.
    """
    is_shown = found.is_used & (found.split == TRAIN)
    for column in ("inspected.secrets", "inspected.personal_data"):
        is_shown &= ~is_listed(rows, column)
    hashes = rows.numbers("parsed.content_hash")
    first_of_source: list[tuple[int, int]] = []
    for start, stop in source_bounds(rows):
        shown = start + np.flatnonzero(is_shown[start:stop])
        order = np.argsort(hashes[shown], kind="stable")[:MAX_EXAMPLES_OF_SOURCE]
        first_of_source += [(int(hashes[row]), int(row)) for row in shown[order]]
    chosen = sorted(row for _, row in sorted(first_of_source)[:MAX_EXAMPLES])
    return [_example(rows, row, sizes) for row in chosen]


def source_bounds(rows: DrawnRows) -> list[tuple[int, int]]:
    """First row and the row after the last of each source; rows stand in the order of the sources."""
    counts = np.zeros(len(rows.sources) + 1, dtype=np.int64)
    for chunk in rows.chunks:
        counts[chunk.source + 1] += chunk.num_rows
    ends = np.cumsum(counts).tolist()
    return list(pairwise(ends))


def _example(rows: DrawnRows, row: int, sizes: RowSizes) -> dict[str, Any]:
    turns = rows.turns(row)
    return {
        "row": rows.row_id(row),
        "num_tokens": int(sizes.tokens[row]),
        "num_target_tokens": int(sizes.target_tokens[row]),
        "is_truncated": bool(sizes.is_cut[row]),
        "num_turns": len(turns),
        "turns": [{"role": role, **_cut(content, MAX_CHARACTERS)} for role, content in turns[:MAX_TURNS]],
    }


def _cut(text: str, longest: int) -> dict[str, Any]:
    """The text as far as it is shown, and how many characters of it are not."""
    return {"text": text[:longest], "num_characters_left_out": max(0, len(text) - longest)}


def quarantine_samples(quarantined_by_kind: Mapping[str, int], file: Path) -> list[dict[str, Any]]:
    """Per kind, most frequent first, how many rows and the first of them with their reasons, from quarantine.jsonl.

    The file is read no further than it takes; the rows' own text stays there, and so does a reason that quotes a private value.
    """
    wanted = {kind: min(count, MAX_QUARANTINED) for kind, count in quarantined_by_kind.items()}
    samples: dict[str, list[dict[str, str]]] = {kind: [] for kind in wanted}
    num_missing = sum(wanted.values())
    with file.open(encoding="utf-8") as lines:
        while num_missing:
            line = lines.readline()
            assert line, f"{file} does not hold the {num_missing} rows that the counts speak of"
            told = json.loads(line)
            if len(samples[told["kind"]]) < wanted[told["kind"]]:
                samples[told["kind"]].append({"row": told["row"], "reason": _as_shown(told["reason"])})
                num_missing -= 1
    ordered = sorted(quarantined_by_kind.items(), key=lambda item: (-item[1], item[0]))
    return [{"kind": kind, "count": count, "rows": samples[kind]} for kind, count in ordered]


def _as_shown(reason: str) -> str:
    """What UTF-8 cannot hold is spelled out: half of a surrogate pair is valid JSON, but no text."""
    secrets = find_secrets(reason)
    if secrets or find_personal_data(reason, secrets):
        return NOT_REPEATED
    cut = reason if len(reason) <= MAX_REASON else reason[:MAX_REASON] + " …"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")
