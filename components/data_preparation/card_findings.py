"""What was found in the rows that were drawn, as counts of rows, for the data card: never a value, never a place.

A row counts once for each kind that it has, so the kinds of one finding may add up to more than its rows.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.data_preparation.drawn_rows import DrawnRows
from components.data_preparation.findings import NONE, Findings, Marks
from components.data_preparation.splits import TRAIN

UNDETERMINED = "undetermined"
"""The language of a row whose text says too little."""


def findings_of_rows(rows: DrawnRows, found: Findings) -> dict[str, Any]:
    """Rows in, whether they are used or not; overlap is that of training rows only, as the contract counts it."""
    repeats = found.repeats != NONE
    of_other_split = repeats & (found.split[found.repeats] != found.split)
    is_train, everywhere = found.split == TRAIN, np.ones(len(rows), dtype=bool)
    return {
        "duplicates": {"rows": int(repeats.sum()), "of_other_split": int(of_other_split.sum())},
        "near_duplicates": {"rows": int((found.nearly_repeats != NONE).sum())},
        "ood_overlaps": _count(rows, "overlapped.ood_overlaps", is_train, _set_of, "by_set"),
        "test_overlaps": _count(rows, "overlapped.test_overlaps", is_train),
        "encoding_faults": _count(rows, "inspected.encoding_faults", everywhere, _kind_of, "by_kind"),
        "secrets": _count(rows, "inspected.secrets", everywhere, _kind_of, "by_kind"),
        "personal_data": _count(rows, "inspected.personal_data", everywhere, _kind_of, "by_kind"),
    }


def languages_of_rows(rows: DrawnRows, found: Findings) -> dict[str, int]:
    """Used rows by the language that they are written in."""
    counts = Counter[str]()
    for start, _, table in rows.tables(["inspected.language"]):
        used = table.column(0).fill_null("").filter(pa.array(found.is_used[start : start + table.num_rows]))
        for pair in pc.value_counts(used).to_pylist():
            counts[pair["values"] or UNDETERMINED] += pair["counts"]
    return dict(sorted(counts.items()))


def _set_of(name: str) -> str:
    """Items are named `file:number`."""
    return name.rpartition(":")[0] or name


def _kind_of(finding: list[Any]) -> str:
    return str(finding[0])


def _count(
    rows: DrawnRows, column: str, wanted: Marks, group_of: Callable[[Any], str] | None = None, groups: str = ""
) -> dict[str, Any]:
    num_rows, by_group = 0, Counter[str]()
    for start, _, table in rows.tables([column]):
        texts = table.column(0).fill_null("[]").filter(pa.array(wanted[start : start + table.num_rows]))
        for listed in _not_empty(texts.filter(pc.not_equal(texts, "[]")).to_pylist()):
            num_rows += 1
            if group_of is not None:
                by_group.update({group_of(one) for one in listed})
    return {"rows": num_rows} | ({groups: dict(sorted(by_group.items()))} if groups else {})


def _not_empty(texts: Iterable[str]) -> Iterable[list[Any]]:
    return (found for text in texts if (found := json.loads(text)))
