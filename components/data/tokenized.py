"""Tokenised rows on disk: one Arrow IPC file per split, memory-mapped when read. The same rows give the same bytes.

Columns: row_id, source, schema, fingerprint, input_ids (int32 list), is_target (bool list), laws (JSON text, embedded world
only: the true law of each target token).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from components.artifacts import read_json
from components.errors import ArtifactError

SPLITS = ("train", "validation", "test")
BATCH_ROWS = 1024
_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("source", pa.string()),
        ("schema", pa.string()),
        ("fingerprint", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("is_target", pa.list_(pa.bool_())),
        ("laws", pa.string()),
    ]
)


@dataclass(frozen=True)
class TokenizedRow:
    row_id: str
    source: str
    schema: str
    fingerprint: str
    input_ids: list[int]
    is_target: list[bool]
    laws: str | None = None

    @property
    def num_targets(self) -> int:
        return sum(self.is_target)

    def true_laws(self) -> list[dict[int, float]] | None:
        """Token id -> probability, one entry per target token; None on real data."""
        if self.laws is None:
            return None
        return [{int(token): probability for token, probability in law.items()} for law in json.loads(self.laws)]


@dataclass(frozen=True)
class FlatRows:
    """All rows one after the other: R rows, T tokens; row r owns tokens row_starts[r] : row_starts[r + 1]."""

    sources: list[str]
    fingerprints: list[str]
    row_starts: npt.NDArray[np.int64]
    input_ids: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]


def write_rows(path: Path, rows: Sequence[TokenizedRow]) -> None:
    columns = [pa.array([getattr(row, column.name) for row in rows], type=column.type) for column in _SCHEMA]
    with RowWriter(path) as writer:
        writer.write(pa.Table.from_arrays(columns, schema=_SCHEMA))


class RowWriter:
    """Writes tables of rows as they come; a batch ends every 1,024 rows, wherever a table ends: equal rows, equal bytes."""

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._waiting = _SCHEMA.empty_table()

    def write(self, table: pa.Table) -> None:
        """The columns of prepared rows, in any order; they are not kept longer than it takes to fill a batch."""
        table = pa.concat_tables([self._waiting, table.select(_SCHEMA.names).cast(_SCHEMA)])
        num_whole = len(table) - len(table) % BATCH_ROWS
        self._write(table.slice(0, num_whole))
        self._waiting = table.slice(num_whole)

    def _write(self, table: pa.Table) -> None:
        for start in range(0, len(table), BATCH_ROWS):
            self._writer.write_table(table.slice(start, BATCH_ROWS).combine_chunks())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(self._waiting)
        self._writer.close()
        self._file.close()


class TokenizedRows(Sequence[TokenizedRow]):
    """The rows of one split, read on demand from a memory-mapped file."""

    def __init__(self, path: Path) -> None:
        repair = "Make it again with: dvc repro -f -s prepare_data"
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise ArtifactError(f"{path} cannot be read ({error}). {repair}") from None
        if self._table.schema != _SCHEMA:
            raise ArtifactError(f"{path} has the columns {self._table.column_names}, not those of prepared rows. {repair}")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> TokenizedRow:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return TokenizedRow(**self._table.slice(index % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[TokenizedRow]:
        """In order, a batch at a time: several times faster than by index."""
        for batch in self._table.to_batches(max_chunksize=BATCH_ROWS):
            yield from (TokenizedRow(**row) for row in batch.to_pylist())

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 where there is none."""
        return pc.max(pc.list_value_length(self._table.column("input_ids"))).as_py() or 0

    @property
    def fingerprint(self) -> str:
        """Of the rows' own fingerprints, in order."""
        digest = xxhash.xxh3_128()
        for batch in self._table.select(["fingerprint"]).to_batches(max_chunksize=BATCH_ROWS):
            digest.update("\n".join([*batch.column(0).to_pylist(), ""]).encode())
        return digest.hexdigest()

    def flat(self) -> FlatRows:
        """Every row at once as arrays, in milliseconds (reading row by row takes a minute per million tokens)."""
        columns = {name: self._table.column(name).combine_chunks() for name in ("input_ids", "is_target")}
        offsets = columns["input_ids"].offsets.to_numpy().astype(np.int64)
        return FlatRows(
            sources=self._table.column("source").to_pylist(),
            fingerprints=self._table.column("fingerprint").to_pylist(),
            row_starts=offsets - offsets[0],
            input_ids=columns["input_ids"].flatten().to_numpy(),
            is_target=columns["is_target"].flatten().to_numpy(zero_copy_only=False),
        )


def read_split(folder: Path, split: str) -> TokenizedRows:
    """Rows of `train`, `validation` or `test` as `prepare_data` left them."""
    return TokenizedRows(folder / f"{split}.arrow")


def read_training_rows(folder: Path) -> TokenizedRows:
    """The training rows, refused unless they are those that identity.json beside them speaks of."""
    rows = read_split(folder, "train")
    said = read_json(folder / "identity.json", made_by="prepare_data")["train_fingerprint"]
    found = rows.fingerprint
    if found != said:
        raise ArtifactError(
            f"{folder / 'train.arrow'} has the data fingerprint {found}, identity.json beside it says {said}. "
            "Make both again with: dvc repro -f -s prepare_data"
        )
    return rows
