"""Laws of the manifest: it comes back as it was written, a damaged one is refused, another identity is told field by field."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from components.errors import ArtifactError, CacheMismatchError
from components.teacher_cache.format import (
    DATA_FIELDS,
    MANIFEST,
    SCHEMA_VERSION,
    CacheManifest,
    ShardEntry,
    check_identity,
    read_manifest,
)
from tests.conftest import build_identity

OTHER = {
    "model_fingerprint": "other",
    "tokenizer_fingerprint": "other",
    "template_fingerprint": "other",
    "data_fingerprint": "other",
    "source": "vllm",
    "max_entries": 9,
    "tail_mass": 0.5,
    "probability_bits": 8,
    "temperature": 2.0,
    "precision": "bf16",
    "positions": "all",
}


def manifest() -> CacheManifest:
    shard = ShardEntry("shard-a.safetensors", 10, 1000, 100, "c0ffee", "c0", {"entries": "ffee"})
    return CacheManifest(build_identity(), 50, 3, 10, statistics=["entropy"], index_bytes=234, index_checksum="1", shards=[shard])


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    assert read_manifest(tmp_path) == manifest()
    assert manifest().bytes_per_token == 123.4


def test_the_identity_of_this_test_covers_every_field() -> None:
    assert {*OTHER, "schema_version"} == set(asdict(build_identity()))


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_another_identity_is_refused_with_the_field_both_values_and_the_command(name: str, value: Any) -> None:
    ours, theirs = build_identity(), replace(build_identity(), **{name: value})
    with pytest.raises(CacheMismatchError) as caught:
        check_identity(theirs, ours, Path("cache"))
    said = str(caught.value)
    assert f"{name}: cache has {value}, this run needs {getattr(ours, name)}" in said
    assert said.count("cache has") == 1 and "dvc repro cache_teacher" in said
    assert theirs.fingerprint != ours.fingerprint


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_other_data_share_their_laws_and_other_settings_do_not(name: str, value: Any) -> None:
    other = replace(build_identity(), **{name: value})
    assert (other.law_fingerprint == build_identity().law_fingerprint) == (name in DATA_FIELDS)


def test_every_flipped_bit_of_the_manifest_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    file = tmp_path / MANIFEST
    whole = file.read_bytes()
    num_refused = 0
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert read_manifest(tmp_path) == manifest(), f"bit {bit}"
        except ArtifactError as error:
            assert "dvc repro" in str(error)
            num_refused += 1
    assert num_refused > 0.8 * 8 * len(whole) / 3


@pytest.mark.parametrize("text", ["[]", "{}", '{"identity": {"schema_version": 2}}', '{"identity": 3}', "", "not json"])
def test_a_file_that_is_no_manifest_is_refused_with_the_command(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="dvc repro"):
        read_manifest(tmp_path)


def test_a_missing_manifest_and_another_schema_version_say_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"missing.*dvc repro cache_teacher"):
        read_manifest(tmp_path)
    manifest().write(tmp_path)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    raw["identity"]["schema_version"] = 1
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=rf"schema version 1, this Ballast reads {SCHEMA_VERSION}.*dvc repro"):
        read_manifest(tmp_path)
