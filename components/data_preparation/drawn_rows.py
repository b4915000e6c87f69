"""The rows that were drawn, side by side with what each pass has left of them; read a bounded number at a time.

R rows over all sources, in the order of the sources. Columns are named by the pass that left them: `parsed.place`,
`tokenised.input_ids`, `inspected.language`.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from components.data.file_blocks import Block
from components.data.source_files import SourceFile
from components.data_preparation.cached_pass import Chunk

MAX_OPENED = 64
"""Chunks kept open for single rows: opening one takes milliseconds."""
BATCH_ROWS = 20_000
"""Rows in memory at a time, with their tokens."""


@dataclass
class DrawnChunk:
    """`start`: its first row among all R; the files are added as passes leave them. `block`: where they stand in the source."""

    source: int
    parsed: Chunk
    start: int
    num_rows: int
    files: dict[str, Path] = field(default_factory=dict)
    block: Block | None = None

    def read(self, name: str) -> Dataset:
        return self.parsed.open() if name == "parsed" else Dataset.from_file(str(self.files[name]))


class DrawnRows:
    """`fixed_splits`: for each source the split that all its rows are in, or None where the content decides."""

    def __init__(self, sources: Sequence[SourceFile], fixed_splits: Sequence[str | None], chunks: Sequence[DrawnChunk]) -> None:
        self.sources = list(sources)
        self.fixed_splits = list(fixed_splits)
        self.chunks = list(chunks)
        self._starts = [chunk.start for chunk in self.chunks]
        self._opened: OrderedDict[int, Dataset] = OrderedDict()

    def __len__(self) -> int:
        return self.chunks[-1].start + self.chunks[-1].num_rows if self.chunks else 0

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """A column of numbers or truth values, [R]; a null is 0."""
        stage, _, name = column.partition(".")
        arrays = [
            part.fill_null(0 if not pa.types.is_boolean(part.type) else False).to_numpy(zero_copy_only=False)
            for chunk in self.chunks
            for part in _column(chunk.read(stage), name)
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)

    def is_null(self, column: str) -> npt.NDArray[np.bool_]:
        stage, _, name = column.partition(".")
        arrays = [
            part.is_null().to_numpy(zero_copy_only=False) for chunk in self.chunks for part in _column(chunk.read(stage), name)
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=bool)

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[int, int, pa.Table]]:
        """Number of the first row, number of the source, and the columns, at most BATCH_ROWS rows at a time."""
        stages = list(dict.fromkeys(column.partition(".")[0] for column in columns))
        for chunk in self.chunks:
            read = {stage: chunk.read(stage).with_format("arrow") for stage in stages}
            for first in range(0, chunk.num_rows, BATCH_ROWS):
                parts = {stage: rows[first : first + BATCH_ROWS] for stage, rows in read.items()}
                arrays = [parts[column.partition(".")[0]].column(column.partition(".")[2]) for column in columns]
                yield chunk.start + first, chunk.source, pa.table(dict(zip(columns, arrays, strict=True)))

    def turns(self, row: int) -> list[list[str]]:
        """[role, content] pairs of one row (of those that could be parsed)."""
        position = bisect_right(self._starts, row) - 1
        if position not in self._opened:
            self._opened[position] = self.chunks[position].read("parsed").select_columns(["conversation"])
            if len(self._opened) > MAX_OPENED:
                self._opened.popitem(last=False)
        turns: list[list[str]] = json.loads(self._opened[position][row - self._starts[position]]["conversation"])
        return turns

    def block_of(self, row: int) -> Block | None:
        return self.chunks[bisect_right(self._starts, row) - 1].block

    def row_id(self, row: int) -> str:
        chunk = self.chunks[bisect_right(self._starts, row) - 1]
        return row_name(self.sources[chunk.source].name, int(self._places[row]), int(self._parts[row]))

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        return self.numbers("parsed.place")

    @cached_property
    def _parts(self) -> npt.NDArray[np.int32]:
        return self.numbers("parsed.part")


def row_name(source: str, place: int, part: int) -> str:
    """`source:line`, and `#2` for the second example that a row gives."""
    return f"{source}:{place}" if part == 1 else f"{source}:{place}#{part}"


def _column(rows: Dataset, name: str) -> list[pa.Array]:
    table = rows.select_columns([name]).with_format("arrow")[:]
    return list(table.column(name).chunks)
