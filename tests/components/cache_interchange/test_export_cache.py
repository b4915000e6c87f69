"""Laws of the exported cache: every column is what the reader gives, and whose laws they are stands in the file."""

import errno
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.cache_interchange import export_cache as module
from components.cache_interchange.export_cache import export_cache
from components.cache_interchange.parquet_export import METADATA_KEY, TOKEN_COLUMNS
from components.data.training_rows import count_targets
from components.errors import ArtifactError, CacheMismatchError
from tests.conftest import build_cache, build_model, build_rows

ROWS = build_rows(25)


@pytest.mark.parametrize("positions", ["targets", "all"])
def test_exported_columns_equal_the_reader_s(tmp_path: Path, positions: str) -> None:
    cache = build_cache(tmp_path, build_model(), ROWS, positions=positions, tail_mass=0.1, probability_bits=12, shard_tokens=60)
    assert export_cache(cache, [*ROWS, ROWS[0]], tmp_path / "out" / "cache.parquet") == len(ROWS)
    exported = pq.read_table(tmp_path / "out" / "cache.parquet").to_pylist()
    assert [record["fingerprint"] for record in exported] == [row.fingerprint for row in ROWS]
    for row, record in zip(ROWS, exported, strict=True):
        num_tokens = count_targets(row) if positions == "targets" else len(row.input_ids) - 1
        columns = cache.read(row.fingerprint, num_tokens)
        assert (record["input_ids"], record["is_target"]) == (row.input_ids, row.is_target)
        for name in TOKEN_COLUMNS:
            assert np.array_equal(np.array(record[name]), columns[name].numpy(), equal_nan=True), name
        is_entry_NK = columns["entry_logprobs"] > float("-inf")
        for name in ("entry_ids", "entry_logprobs"):
            kept = [values[own].tolist() for values, own in zip(columns[name], is_entry_NK, strict=True)]
            assert record[name] == kept
        assert len({len(entries) for entries in record["entry_ids"]}) >= 1 and all(record["entry_ids"])


def test_the_file_names_the_identity_of_its_laws(tmp_path: Path) -> None:
    cache = build_cache(tmp_path, build_model(), ROWS)
    export_cache(cache, ROWS, tmp_path / "cache.parquet")
    metadata = json.loads(pq.read_schema(tmp_path / "cache.parquet").metadata[METADATA_KEY.encode()])
    assert metadata["identity"] == vars(cache.manifest.identity) and metadata["manifest_seal"] == cache.manifest.seal
    assert (metadata["vocabulary_size"], metadata["num_records"]) == (50, 25)


def test_a_row_that_the_cache_does_not_have_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    cache = build_cache(tmp_path, build_model(), ROWS)
    with pytest.raises(CacheMismatchError, match="dvc repro cache_teacher"):
        export_cache(cache, [*ROWS, *build_rows(1, seed=3)], tmp_path / "out" / "cache.parquet")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "export_rows", fail)
    with pytest.raises(ArtifactError, match=r"No space left on device.*set cache_export\.path"):
        export_cache(build_cache(tmp_path, build_model(), ROWS), ROWS, tmp_path / "cache.parquet")
