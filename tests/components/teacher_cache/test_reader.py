"""Laws of reading the cache: any damage and any other run's cache is refused, with the place and the command that repairs it."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from components.data.training_rows import count_targets
from components.errors import ArtifactError, CacheMismatchError
from components.teacher_cache.format import MANIFEST
from components.teacher_cache.reader import TeacherCacheReader
from tests.conftest import build_cache, build_identity, build_model, build_rows

ROWS = build_rows(30)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TeacherCacheReader:
    return build_cache(tmp_path_factory.mktemp("cache"), build_model(), ROWS, shard_tokens=70)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_cache(tmp_path, build_model(), ROWS, shard_tokens=70)
    return tmp_path / "cache"


def open_it(folder: Path, **changes: Any) -> TeacherCacheReader:
    return TeacherCacheReader(folder, build_identity(**changes))


def test_records_are_found_in_any_order_and_together_are_the_whole_column(cache: TeacherCacheReader) -> None:
    assert len(cache) == len(ROWS)
    parts = {row.fingerprint: cache.read(row.fingerprint, count_targets(row)) for row in ROWS[::-1]}
    for name in ("entropy", "label_logprob", "entry_ids"):
        whole = torch.cat([parts[row.fingerprint][name] for row in ROWS])
        assert torch.equal(whole, cache.column(name))


def test_a_row_that_was_never_captured_is_refused_with_both_fingerprints_and_the_command(cache: TeacherCacheReader) -> None:
    stranger = build_rows(1, seed=99)[0]
    with pytest.raises(CacheMismatchError) as caught:
        cache.read(stranger.fingerprint, count_targets(stranger))
    for word in (stranger.fingerprint, build_identity().data_fingerprint, "dvc repro cache_teacher"):
        assert word in str(caught.value)


def test_a_row_with_another_number_of_targets_is_refused(cache: TeacherCacheReader) -> None:
    wrong = count_targets(ROWS[0]) + 1
    with pytest.raises(CacheMismatchError, match=rf"{ROWS[0].fingerprint} \({wrong} tokens\)"):
        cache.read(ROWS[0].fingerprint, wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_fingerprint", "x"),
        ("tokenizer_fingerprint", "x"),
        ("data_fingerprint", "x"),
        ("num_entries", 4),
        ("temperature", 2.0),
        ("precision", "bf16"),
    ],
)
def test_a_cache_made_for_something_else_is_refused_before_any_shard_is_read(
    cache: TeacherCacheReader, name: str, value: Any
) -> None:
    with pytest.raises(CacheMismatchError) as caught:
        open_it(cache._folder, **{name: value})
    assert f"{name}: cache has {getattr(build_identity(), name)}, this run needs {value}" in str(caught.value)
    assert "dvc repro cache_teacher" in str(caught.value)


def test_a_flipped_bit_anywhere_in_a_shard_is_refused_by_name(folder: Path) -> None:
    draw = random.Random(0)
    shards = sorted(folder.glob("*.safetensors"))
    for _ in range(60):
        shard = draw.choice(shards)
        whole = shard.read_bytes()
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        shard.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=rf"{shard.name} is damaged.*dvc repro -f -s cache_teacher"):
            open_it(folder)
        shard.write_bytes(whole)
    open_it(folder)


@pytest.mark.parametrize("kept", [0.0, 0.5, -1])
def test_a_truncated_shard_is_refused_by_name(folder: Path, kept: float) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] if kept < 0 else whole[: int(kept * len(whole))])
    with pytest.raises(ArtifactError, match=rf"{shard.name} is damaged.*dvc repro"):
        open_it(folder)


def test_a_missing_shard_two_shards_swapped_and_a_missing_manifest_are_refused(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    content = first.read_bytes(), second.read_bytes()
    first.unlink()
    with pytest.raises(ArtifactError, match=rf"{first.name} is missing.*dvc repro"):
        open_it(folder)
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with pytest.raises(ArtifactError, match=rf"{first.name} is damaged"):
        open_it(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"manifest.json is missing.*dvc repro cache_teacher"):
        open_it(folder)
