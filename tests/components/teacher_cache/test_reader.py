"""Laws of reading the cache: any damage and any other run's cache is refused, with the place and the command that repairs it."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from components.data.training_rows import count_targets
from components.errors import ArtifactError, CacheMismatchError
from components.teacher_cache import reader
from components.teacher_cache.format import INDEX, MANIFEST
from components.teacher_cache.reader import RecordRequest, TeacherCacheReader
from components.teacher_cache.recent_records import RecentRecords
from components.teacher_cache.shard_file import ShardTensors
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


def test_records_are_found_in_any_order_alone_and_together(cache: TeacherCacheReader) -> None:
    assert len(cache) == len(ROWS)
    together = cache.read_batch([RecordRequest(row.fingerprint, count_targets(row)) for row in ROWS[::-1]])
    start = 0
    for row in ROWS[::-1]:
        alone = cache.read(row.fingerprint, count_targets(row))
        stop = start + count_targets(row)
        assert torch.equal(together["entropy"][start:stop], alone["entropy"])
        assert torch.equal(together["entry_ids"][start:stop, : alone["entry_ids"].shape[1]], alone["entry_ids"])
        start = stop


def test_the_targets_of_a_cache_with_prompts_are_those_of_a_cache_without(tmp_path: Path) -> None:
    everything = build_cache(tmp_path / "all", build_model(), ROWS, positions="all", tail_mass=0.05)
    targets = build_cache(tmp_path / "targets", build_model(), ROWS, tail_mass=0.05)
    for row in ROWS:
        one, other = (cache.read_targets(row.fingerprint, row.is_target) for cache in (everything, targets))
        torch.testing.assert_close(one["label_logprob"], other["label_logprob"], rtol=0, atol=1e-5)
        assert one["entry_ids"].shape == other["entry_ids"].shape
        statistics = everything.read_statistics(row.fingerprint, row.is_target)
        for name in ("label_logprob", "entropy", "label_rank", "margin"):
            assert torch.equal(statistics[name], one[name].float())


def test_opening_reads_no_shard_but_its_header(cache: TeacherCacheReader, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(ShardTensors, "record", lambda *_: read.append("record"))
    monkeypatch.setattr(ShardTensors, "whole_column", lambda *_: read.append("column"))
    open_it(cache._folder)
    assert read == []


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
        ("template_fingerprint", "x"),
        ("max_entries", 4),
        ("tail_mass", 0.5),
        ("probability_bits", 8),
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


def read_all(folder: Path) -> None:
    cache = open_it(folder)
    for row in ROWS:
        cache.read(row.fingerprint, count_targets(row))


def test_one_flipped_bit_anywhere_is_refused_before_it_is_used(folder: Path) -> None:
    draw = random.Random(0)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    for _ in range(150):
        file = draw.choice(files)
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=rf"{file.name} is damaged.*dvc repro -f -s cache_teacher"):
            read_all(folder)
        file.write_bytes(whole)
    read_all(folder)


def test_every_bit_of_a_small_shard_is_guarded(tmp_path: Path) -> None:
    rows = [row for row in ROWS if count_targets(row) <= 2][:2]
    build_cache(tmp_path, build_model(), rows)
    (shard,) = (tmp_path / "cache").glob("shard-*")
    whole = shard.read_bytes()
    for bit in range(0, 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            cache = open_it(tmp_path / "cache")
            for row in rows:
                cache.read(row.fingerprint, count_targets(row))


@pytest.mark.parametrize("kept", [0.0, 0.5, -1])
def test_a_truncated_file_is_refused_by_name_when_the_cache_is_opened(folder: Path, kept: float) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] if kept < 0 else whole[: int(kept * len(whole))])
        with pytest.raises(ArtifactError, match=rf"{file.name} is damaged.*dvc repro"):
            open_it(folder)
        file.write_bytes(whole)


def test_a_missing_shard_two_shards_swapped_and_a_missing_manifest_are_refused(folder: Path) -> None:
    first, second = sorted(folder.glob("shard-*.safetensors"))[:2]
    content = first.read_bytes(), second.read_bytes()
    first.unlink()
    with pytest.raises(ArtifactError, match=rf"{first.name} is missing.*dvc repro"):
        open_it(folder)
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with pytest.raises(ArtifactError, match=rf"({first.name}|{second.name}) is damaged"):
        open_it(folder)
    first.write_bytes(content[0])
    second.write_bytes(content[1])
    (folder / INDEX).unlink()
    with pytest.raises(ArtifactError, match=r"index.safetensors is missing.*dvc repro"):
        open_it(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"manifest.json is missing.*dvc repro cache_teacher"):
        open_it(folder)


def test_more_shards_than_may_be_mapped_at_once_are_read_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_MAPPED", 2)
    cache = open_it(folder)
    num_shards = len(cache.manifest.shards)
    before = len(os.listdir("/proc/self/fd"))
    for row in [*ROWS, *ROWS[::-1]]:
        cache._recent = RecentRecords(budget_bytes=0)
        assert len(cache.read(row.fingerprint, count_targets(row))["entropy"]) == count_targets(row)
    assert num_shards > 2 and len(os.listdir("/proc/self/fd")) <= before + 2
