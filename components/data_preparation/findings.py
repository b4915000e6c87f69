"""What the passes have found, row against row, and which rows are set aside for it.

R rows. A row that could not be parsed or rendered is out before: it repeats nothing, and nothing repeats it. Where two rows are
alike, the one that stands first is kept, test rows before validation rows before training rows: so what is held out stays.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import numpy.typing as npt

from components.data.faults import FaultKind
from components.data_contract.inspection import bands_of
from components.data_contract.near_duplicates import NUM_BANDS, near_duplicate_groups
from components.data_params import DataContractParams
from components.data_preparation.drawn_rows import DrawnRows
from components.data_preparation.splits import TRAIN

Rows = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]
KINDS = tuple(FaultKind)
NONE = -1


@dataclass
class Findings:
    """All [R]. `split` 0, 1, 2: train, validation, test; `repeats`, `nearly_repeats`: number of the row that stands before, or
    -1; `fault`: 0, or one more than the number of its kind in FaultKind."""

    split: npt.NDArray[np.int8]
    repeats: Rows
    nearly_repeats: Rows
    fault: npt.NDArray[np.int8]

    @property
    def is_used(self) -> Marks:
        return np.equal(self.fault, 0)


def code_of(kind: FaultKind) -> int:
    return KINDS.index(kind) + 1


def kind_of_code(code: int) -> FaultKind | None:
    return KINDS[code - 1] if code else None


def find(rows: DrawnRows, split: npt.NDArray[np.int8], contract: DataContractParams, work: Path) -> Findings:
    """Everything that is told from all rows together, and the rows that the policy sets aside.

    First for what they hold themselves: a copy of a row that is set aside is no copy.
    """
    nobody = np.full(len(rows), NONE, dtype=np.int64)
    found = Findings(split, nobody, nobody, _faults_of_passes(rows))
    for kind, marks_of in _OF_ROWS.items():
        if kind.value in contract.quarantine:
            found.fault[marks_of(rows, found, contract) & found.is_used] = code_of(kind)
    order = np.lexsort((np.arange(len(rows)), -split.astype(np.int8)))
    order = order[found.is_used[order]]
    found.repeats = _first_copies(rows.numbers("parsed.content_hash"), order)
    distinct = order[found.repeats[order] == NONE]
    found.nearly_repeats = _near_copies(rows, distinct, contract.near_duplicate_similarity, work)
    for kind, copies in ((FaultKind.DUPLICATE, found.repeats), (FaultKind.NEAR_DUPLICATE, found.nearly_repeats)):
        if kind.value in contract.quarantine:
            found.fault[(copies != NONE) & found.is_used] = code_of(kind)
    return found


def _faults_of_passes(rows: DrawnRows) -> npt.NDArray[np.int8]:
    fault = np.zeros(len(rows), dtype=np.int8)
    for start, _, table in rows.tables(["parsed.fault_kind", "tokenised.fault_kind"]):
        for column in table.columns:
            for code, kind in enumerate(KINDS, start=1):
                marks = np.equal(column.fill_null("").to_numpy(zero_copy_only=False), kind.value)
                fault[start : start + len(marks)][marks] = code
    return fault


def _first_copies(content_hashes: npt.NDArray[np.uint64], order: Rows) -> Rows:
    """For each row the first in `order` with its content hash, or -1 where it is the first itself."""
    firsts = np.full(len(content_hashes), NONE, dtype=np.int64)
    _, first, inverse = np.unique(content_hashes[order], return_index=True, return_inverse=True)
    original = order[first[inverse]]
    firsts[order] = np.where(original == order, NONE, original)
    return firsts


def _near_copies(rows: DrawnRows, order: Rows, similarity: float, work: Path) -> Rows:
    """For each row the one before it (in `order`) that it nearly repeats, or -1. The bands lie in a file, not in memory."""
    nearly = np.full(len(rows), NONE, dtype=np.int64)
    if not len(order):
        return nearly
    places = np.full(len(rows), NONE, dtype=np.int64)
    places[order] = np.arange(len(order))
    with NamedTemporaryFile(dir=work, prefix="bands.") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * NUM_BANDS * len(order))  # a full disk is an error here, not a crash in the map
        bands = np.memmap(file.name, dtype=np.uint64, mode="r+", shape=(len(order), NUM_BANDS))
        for start, _, table in rows.tables(["inspected.bands"]):
            block = places[start : start + table.num_rows]
            bands[block[block != NONE]] = bands_of(table.column(0))[block != NONE]
        groups = near_duplicate_groups(bands, lambda position: rows.turns(int(order[position])), similarity)
    nearly[order] = np.where(groups == NONE, NONE, order[groups])
    return nearly


def _other_language(rows: DrawnRows, contract: DataContractParams) -> Marks:
    """Rows in a language that is not wished for; a text that says too little is in none."""
    marks = np.zeros(len(rows), dtype=bool)
    if contract.languages:
        allowed = ("", *contract.languages)
        for start, _, table in rows.tables(["inspected.language"]):
            found = table.column(0).fill_null("").to_numpy(zero_copy_only=False)
            marks[start : start + len(found)] = ~np.isin(found.astype(str), allowed)
    return marks


def is_listed(rows: DrawnRows, column: str) -> Marks:
    """Rows whose list of findings (JSON) is not empty."""
    marks = np.zeros(len(rows), dtype=bool)
    for start, _, table in rows.tables([column]):
        found = table.column(0).fill_null("[]").to_numpy(zero_copy_only=False)
        marks[start : start + len(found)] = found != "[]"
    return marks


def _listed(column: str) -> Callable[[DrawnRows, Findings, DataContractParams], Marks]:
    return lambda rows, found, contract: is_listed(rows, column)


def _overlapping(column: str) -> Callable[[DrawnRows, Findings, DataContractParams], Marks]:
    return lambda rows, found, contract: is_listed(rows, column) & (found.split == TRAIN)


_OF_ROWS: dict[FaultKind, Callable[[DrawnRows, Findings, DataContractParams], Marks]] = {
    FaultKind.SECRET: _listed("inspected.secrets"),
    FaultKind.PERSONAL_DATA: _listed("inspected.personal_data"),
    FaultKind.OOD_OVERLAP: _overlapping("overlapped.ood_overlaps"),
    FaultKind.TEST_OVERLAP: _overlapping("overlapped.test_overlaps"),
    FaultKind.ENCODING: _listed("inspected.encoding_faults"),
    FaultKind.LANGUAGE: lambda rows, found, contract: _other_language(rows, contract),
}
"""What must not be passed on comes first: a row is set aside for one reason only."""
