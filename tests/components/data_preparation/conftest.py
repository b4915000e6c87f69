"""Prepared rows without the passes that make them: Arrow files in the columns that the passes leave, written by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from components.data.faults import FaultKind

TURNS = [["user", "how many eggs?"], ["assistant", "fourteen eggs"]]
COLUMNS: dict[str, list[tuple[str, pa.DataType, Any]]] = {
    "parsed": [
        ("place", pa.int64(), None),
        ("part", pa.int32(), 1),
        ("schema", pa.string(), "alpaca"),
        ("conversation", pa.string(), None),
        ("content_hash", pa.uint64(), None),
        ("fault_kind", pa.string(), None),
        ("fault", pa.string(), None),
    ],
    "tokenised": [
        ("fingerprint", pa.string(), ""),
        ("input_ids", pa.list_(pa.int32()), None),
        ("is_target", pa.list_(pa.bool_()), None),
        ("num_turns_cut", pa.int32(), 0),
        ("end_of_turn_is_target", pa.bool_(), True),
        ("fault_kind", pa.string(), None),
        ("fault", pa.string(), None),
    ],
    "inspected": [
        ("num_turns", pa.int32(), None),
        ("prompt_characters", pa.int64(), 20),
        ("target_characters", pa.int64(), 20),
        ("language", pa.string(), "en"),
        ("encoding_faults", pa.string(), "[]"),
        ("secrets", pa.string(), "[]"),
        ("personal_data", pa.string(), "[]"),
        ("bands", pa.binary(128), bytes(128)),
        ("answer_is_well_formed", pa.bool_(), None),
    ],
    "overlapped": [("ood_overlaps", pa.string(), "[]"), ("test_overlaps", pa.string(), "[]")],
}
"""Per pass: name, type and what a row that says nothing of it holds."""
PARSING_KINDS = tuple(FaultKind)[:9]


@pytest.fixture
def make_prepared(tmp_path: Path) -> Callable[..., Any]:
    """`make_prepared(rows, sources={}, num_not_drawn={}, rows_per_chunk=3)`: a Prepared of rows that stand source by source.

    A row is a dict, all of it optional: `source`, `turns`, `split`, `fault` (a FaultKind), `reason`, `num_tokens`, `num_targets`,
    `repeats` and `nearly_repeats` (numbers of rows), and any column by its name, lists of findings as Python lists.
    `sources`: name -> licence, weight, max_examples, origin; a source without rows is named there too.
    """

    def make(
        rows: Sequence[Mapping[str, Any]],
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        num_not_drawn: Mapping[str, int] | None = None,
        rows_per_chunk: int = 3,
    ) -> Any:
        from components.data_preparation.drawn_rows import DrawnRows
        from components.data_preparation.prepare import Prepared

        names = list(dict.fromkeys([*(row.get("source", "a.jsonl") for row in rows), *(sources or {})]))
        files = [_source_file(name, (sources or {}).get(name, {})) for name in names]
        whole = [_whole(row, place) for place, row in enumerate(rows, start=1)]
        chunks = _chunks(whole, names, rows_per_chunk, tmp_path / "prepared_rows")
        num_read = tuple(sum(row["source"] == name for row in whole) + (num_not_drawn or {}).get(name, 0) for name in names)
        return Prepared(DrawnRows(files, [None] * len(files), chunks), _findings(whole), num_read)

    return make


def _source_file(name: str, about: Mapping[str, Any]) -> Any:
    from components.data.source_files import SourceFile

    unsaid = {"licence": None, "weight": None, "max_examples": None, "group": name, "origin": None}
    return SourceFile(name=name, path=Path("/nowhere") / name, **{**unsaid, **about})


def _whole(row: Mapping[str, Any], place: int) -> dict[str, Any]:
    turns, fault = row.get("turns", TURNS), row.get("fault")
    text = json.dumps(turns, ensure_ascii=False)
    num_targets, num_tokens = row.get("num_targets", 2), row.get("num_tokens", 5)
    is_parsed, is_rendered = fault not in PARSING_KINDS, fault not in tuple(FaultKind)[:13]
    told = row.get("reason", f"{fault} here") if not is_rendered else None
    made = {
        "source": "a.jsonl",
        "split": "train",
        "place": place,
        "conversation": text if is_parsed else None,
        "content_hash": xxhash.xxh3_64_intdigest(text.encode()) if is_parsed else None,
        "num_turns": len(turns) if is_parsed else 0,
        "input_ids": list(range(num_tokens)) if is_rendered else [],
        "is_target": [place >= num_tokens - num_targets for place in range(num_tokens)] if is_rendered else [],
        "parsed.fault": told if not is_parsed else None,
        "parsed.fault_kind": str(fault) if not is_parsed else None,
        "tokenised.fault": told if is_parsed and not is_rendered else None,
        "tokenised.fault_kind": str(fault) if is_parsed and not is_rendered else None,
    }
    if not is_parsed:
        made |= {"schema": "", "language": ""}
    return made | {name: json.dumps(value) if _is_findings(name) and value is not None else value for name, value in row.items()}


def _is_findings(name: str) -> bool:
    return name in ("encoding_faults", "secrets", "personal_data", "ood_overlaps", "test_overlaps")


def _chunks(whole: Sequence[Mapping[str, Any]], names: Sequence[str], rows_per_chunk: int, folder: Path) -> list[Any]:
    from components.data_preparation.cached_pass import Chunk
    from components.data_preparation.drawn_rows import DrawnChunk

    folder.mkdir(exist_ok=True)
    chunks: list[Any] = []
    start = 0
    for source, own in groupby(whole, key=lambda row: row["source"]):
        rows = list(own)
        assert names.index(source) >= (chunks[-1].source if chunks else 0), "rows stand source by source"
        for first in range(0, len(rows), rows_per_chunk):
            part = rows[first : first + rows_per_chunk]
            files = {name: _write(part, name, folder / f"{name}-{len(list(folder.iterdir()))}.arrow") for name in COLUMNS}
            parsed = Chunk(f"{source} {first}", files.pop("parsed"))
            chunks.append(DrawnChunk(names.index(source), parsed, start, len(part), files))
            start += len(part)
    return chunks


def _write(rows: Sequence[Mapping[str, Any]], name: str, file: Path) -> Path:
    fields = [pa.field(column, kind) for column, kind, _ in COLUMNS[name]]
    values = [
        pa.array([row.get(f"{name}.{column}", row.get(column, unsaid)) for row in rows], type=kind)
        for column, kind, unsaid in COLUMNS[name]
    ]
    table = pa.Table.from_arrays(values, schema=pa.schema(fields))
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return file


def _findings(whole: Sequence[Mapping[str, Any]]) -> Any:
    from components.data.tokenized import SPLITS
    from components.data_preparation.findings import NONE, Findings, code_of

    return Findings(
        split=np.array([SPLITS.index(row["split"]) for row in whole], dtype=np.int8),
        repeats=np.array([row.get("repeats", NONE) for row in whole], dtype=np.int64),
        nearly_repeats=np.array([row.get("nearly_repeats", NONE) for row in whole], dtype=np.int64),
        fault=np.array([code_of(row["fault"]) if row.get("fault") else 0 for row in whole], dtype=np.int8),
    )


@pytest.fixture
def prepare_file(tmp_path: Path) -> Callable[..., Any]:
    """`prepare_file(file, tokenizer, split=None, held_out=None, contract=None, test_file=None, **data_params)`: a Prepared."""
    from components.data.source_files import SourceFile
    from components.data_contract.overlap import OverlapIndex
    from components.data_params import DataContractParams, DataParams
    from components.data_preparation.prepare import Source, prepare

    def prepare_one(
        file: Path,
        tokenizer: Any,
        *,
        split: str | None = None,
        held_out: Any = None,
        contract: Any = None,
        test_file: Path | None = None,
        work: Path | None = None,
        **data: Any,
    ) -> Any:
        params = DataParams(**({"validation_fraction": 0.2, "test_fraction": 0.2} | data))
        sources = [Source(SourceFile(file.name, file, None, None, params.max_examples, file.name), split)]
        if test_file is not None:
            sources.append(Source(SourceFile(test_file.name, test_file, None, None, None, test_file.name), "test"))
        index = OverlapIndex([], []) if held_out is None else held_out
        return prepare(sources, tokenizer, params, contract or DataContractParams(), index, work or tmp_path / "work")

    return prepare_one


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """`write_lines(rows, name="a.jsonl")`: a file of JSON lines; a row that is a text already stands as it is."""

    def write(rows: Sequence[Any], name: str = "a.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return tmp_path / name

    return write
