"""Laws of the sidecar: the same numbers as the reader's, in the rows' own order, and nothing for rows it was not made for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from components.artifacts import fingerprint_row
from components.data.tokenized import FlatRows, TokenizedRow, TokenizedRows, write_rows
from components.errors import ArtifactError, CacheMismatchError
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.sidecar import predicted_targets, read_sidecar
from tests.conftest import Row, build_cache, build_model, build_rows

ROWS = [*build_rows(30), Row([3, 4, 5, 6], [True, True, False, True])]
"""The last one begins with a target: nothing predicts that token."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TeacherCacheReader]:
    folder = tmp_path_factory.mktemp("sidecar")
    return folder / "cache", build_cache(folder, build_model(), ROWS, shard_tokens=60)


def flat(rows: list[Row], folder: Path) -> FlatRows:
    write_rows(
        folder / "train.arrow",
        [TokenizedRow(f"f:{i}", f"f{i % 2}", "s", row.fingerprint, row.input_ids, row.is_target) for i, row in enumerate(rows)],
    )
    return TokenizedRows(folder / "train.arrow").flat()


def test_flat_rows_are_the_rows(tmp_path: Path) -> None:
    found = flat(ROWS, tmp_path)
    assert found.input_ids.tolist() == [token for row in ROWS for token in row.input_ids]
    assert found.is_target.tolist() == [mark for row in ROWS for mark in row.is_target]
    assert np.diff(found.row_starts).tolist() == [len(row.input_ids) for row in ROWS]
    assert found.fingerprints == [row.fingerprint for row in ROWS] and found.sources[:3] == ["f0", "f1", "f0"]
    assert predicted_targets(found).sum() == sum(sum(row.is_target[1:]) for row in ROWS)


def test_its_numbers_are_the_reader_s_in_the_order_of_the_rows(cache: tuple[Path, TeacherCacheReader], tmp_path: Path) -> None:
    folder, reader = cache
    assert len(list(folder.glob("*.safetensors"))) > 2, "several shards"
    shuffled = [*ROWS[::-1], ROWS[3], ROWS[3]]
    found = read_sidecar(folder, flat(shuffled, tmp_path), ("label_logprob", "entropy"))
    for name, values in found.items():
        wanted = torch.cat([reader.read(row.fingerprint, sum(row.is_target[1:]))[name] for row in shuffled])
        assert values.tolist() == wanted.double().tolist()


def test_a_row_that_the_cache_was_not_made_for_is_refused(cache: tuple[Path, TeacherCacheReader], tmp_path: Path) -> None:
    other = Row([9, 9, 9], [False, True, True])
    assert other.fingerprint == fingerprint_row([9, 9, 9], [False, True, True])
    with pytest.raises(CacheMismatchError, match=rf"row 1 \({other.fingerprint}\).*dvc repro cache_teacher"):
        read_sidecar(cache[0], flat([ROWS[0], other], tmp_path), ("entropy",))


def test_a_shard_that_is_gone_is_named_with_its_repair(tmp_path: Path) -> None:
    build_cache(tmp_path, build_model(), ROWS)
    shard = next((tmp_path / "cache").glob("shard-*"))
    shard.unlink()
    with pytest.raises(ArtifactError, match=rf"{shard.name} is missing.*dvc repro -f -s cache_teacher"):
        read_sidecar(tmp_path / "cache", flat(ROWS, tmp_path), ("entropy",))
