"""Laws of the exported parquet file: every entry comes back, nothing half written is left, memory is that of one row group."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.cache_interchange import parquet_export
from components.cache_interchange.parquet_export import METADATA_KEY, TOKEN_COLUMNS, ExportedRecord, export_rows
from components.errors import ArtifactError


def record(number: int, num_tokens: int = 3, width: int = 4) -> ExportedRecord:
    draw = np.random.default_rng(number)
    columns = {f"{name}_N": draw.normal(size=num_tokens).astype(np.float32) for name in TOKEN_COLUMNS}
    return ExportedRecord(
        fingerprint=f"{number:032x}",
        input_ids=draw.integers(0, 262_144, num_tokens + 2).tolist(),
        is_target=[False, False, *[True] * num_tokens],
        entry_ids_NK=draw.integers(0, 262_144, (num_tokens, width), dtype=np.int32),
        entry_logprobs_NK=-draw.random((num_tokens, width)).astype(np.float32),
        num_entries_N=draw.integers(0, width + 1, num_tokens),
        **{**columns, "label_rank_N": draw.integers(-1, 99, num_tokens, dtype=np.int32)},
    )


def without_padding(values_NK: Any, kept: ExportedRecord) -> list[list[Any]]:
    return [row[:count].tolist() for row, count in zip(values_NK, kept.num_entries_N, strict=True)]


def test_every_record_comes_back_without_its_padding(tmp_path: Path) -> None:
    records = [record(0), record(1, num_tokens=1, width=7), record(2, num_tokens=0)]
    assert export_rows(iter(records), tmp_path / "new" / "cache.parquet", metadata={"K": 4}) == 3
    rows = pq.read_table(tmp_path / "new" / "cache.parquet").to_pylist()
    for row, kept in zip(rows, records, strict=True):
        assert row["fingerprint"] == kept.fingerprint
        assert row["input_ids"] == kept.input_ids and row["is_target"] == kept.is_target
        assert row["entry_ids"] == without_padding(kept.entry_ids_NK, kept)
        assert row["entry_logprobs"] == without_padding(kept.entry_logprobs_NK, kept)
        assert all(row[name] == getattr(kept, f"{name}_N").tolist() for name in TOKEN_COLUMNS)


def test_the_columns_have_the_names_and_types_that_are_promised(tmp_path: Path) -> None:
    export_rows([record(0)], tmp_path / "cache.parquet", metadata={"temperature": 1.0, "who": "ß"})
    schema = pq.read_schema(tmp_path / "cache.parquet")
    types = {field.name: str(field.type) for field in schema}
    numbers = dict.fromkeys(("tail_logprob", "label_logprob", "entropy", "log_partition", "margin"), "list<element: float>")
    assert types == {
        "fingerprint": "string",
        "input_ids": "list<element: int32>",
        "is_target": "list<element: bool>",
        "entry_ids": "list<element: list<element: int32>>",
        "entry_logprobs": "list<element: list<element: float>>",
        "label_rank": "list<element: int32>",
        **numbers,
    }
    assert json.loads(schema.metadata[METADATA_KEY.encode()]) == {"temperature": 1.0, "who": "ß"}


def test_what_is_not_known_stays_nan_and_an_empty_tail_minus_infinity(tmp_path: Path) -> None:
    unknown = np.full(3, np.nan, dtype=np.float32)
    kept = dataclasses.replace(record(0), entropy_N=unknown, tail_logprob_N=np.full(3, -np.inf))
    export_rows([kept], tmp_path / "cache.parquet", metadata={})
    (row,) = pq.read_table(tmp_path / "cache.parquet").to_pylist()
    assert np.isnan(row["entropy"]).all() and row["tail_logprob"] == [-np.inf] * 3


def test_row_groups_are_written_as_records_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_export, "TOKENS_PER_GROUP", 6)
    assert export_rows(map(record, range(5)), tmp_path / "cache.parquet", metadata={}) == 5
    file = pq.ParquetFile(tmp_path / "cache.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [2, 2, 1]
    names = [row["fingerprint"] for row in pq.read_table(tmp_path / "cache.parquet").to_pylist()]
    assert names == [record(number).fingerprint for number in range(5)]


def test_no_records_are_a_file_without_rows(tmp_path: Path) -> None:
    assert export_rows([], tmp_path / "cache.parquet", metadata={}) == 0
    assert pq.read_table(tmp_path / "cache.parquet").num_rows == 0


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "cache.parquet"
    export_rows([record(0)], file, metadata={})
    before = file.read_bytes()

    def break_off() -> Iterator[ExportedRecord]:
        yield record(1)
        raise RuntimeError("the cache broke")

    with pytest.raises(RuntimeError, match="the cache broke"):
        export_rows(break_off(), file, metadata={})
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_target": [True]}, "is_target has shape 1, not 5"),
        ({"entropy_N": np.zeros(2)}, r"entropy has shape \(2,\), not \(3,\)"),
        ({"entry_logprobs_NK": np.zeros((3, 5))}, r"entry_logprobs has shape \(3, 5\), not \(3, 4\)"),
        ({"num_entries_N": np.array([1, 5, 0])}, "num_entries is not within 0 and 4"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused_by_their_record(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=f"record {record(0).fingerprint}: {message}"):
        export_rows([dataclasses.replace(record(0), **changes)], tmp_path / "cache.parquet", metadata={})
    assert not list(tmp_path.iterdir())
