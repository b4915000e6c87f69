"""Laws of damage: nothing wrong is ever handed out, and the same command captures what is damaged, and no more."""

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from components.data.training_rows import count_targets
from components.errors import ArtifactError
from components.teacher_cache.format import INDEX, MANIFEST
from components.teacher_cache.reader import TeacherCacheReader
from tests.components.teacher_cache.conftest import as_bytes, capture, files, forwarded, identity_of, left_over, planned, read_all
from tests.conftest import build_rows

ROWS = build_rows(40, seed=6)
SHARDS = planned(ROWS)
NUM_FLIPS = 100


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    capture(folder, ROWS)
    (folder / "notes").unlink()
    return folder


@pytest.fixture
def folder(made: Path, ram: Path) -> Path:
    return Path(shutil.copytree(made, ram / "damaged"))


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def read_what_can_be_read(cache: Path) -> tuple[dict[str, dict[str, bytes]], int]:
    """The records that are handed out, and how many are refused; all of them when the cache does not open."""
    try:
        reader = TeacherCacheReader(cache, identity_of(ROWS))
    except ArtifactError:
        return {}, len(ROWS)
    found = {}
    for row in ROWS:
        with suppress(ArtifactError):
            found[row.fingerprint] = as_bytes(reader.read(row.fingerprint, count_targets(row)))
    return found, len(ROWS) - len(found)


def rows_of(name: str) -> set[tuple[int, ...]]:
    return {tuple(ROWS[row.place].input_ids) for shard in SHARDS if shard.name == name for row in shard.rows}


def test_a_flipped_bit_at_a_hundred_random_places_is_noticed_and_nothing_wrong_is_handed_out(made: Path, ram: Path) -> None:
    truth = read_all(made / "cache", ROWS)
    cache = Path(shutil.copytree(made / "cache", ram / "cache"))
    sizes = {file: file.stat().st_size for file in sorted(cache.iterdir())}
    draw, noticed, kinds = random.Random(7), 0, set()
    for _ in range(NUM_FLIPS):
        (file,) = draw.sample(list(sizes), 1, counts=list(sizes.values()))
        bit = draw.randrange(8 * sizes[file])
        flip(file, bit)
        found, refused = read_what_can_be_read(cache)
        noticed += refused > 0
        kinds.add(file.name)
        assert all(truth[name] == record for name, record in found.items())
        flip(file, bit)
    assert noticed == NUM_FLIPS
    assert {MANIFEST, INDEX} < kinds and len(kinds) == len(sizes)
    assert read_what_can_be_read(cache) == (truth, 0)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_the_middle(file: Path) -> None:
    flip(file, 4 * file.stat().st_size + 3)


@pytest.mark.parametrize("damage", [cut, halve, empty, flip_the_middle, Path.unlink])
def test_a_damaged_shard_is_refused_and_its_rows_alone_are_captured_again(
    made: Path, folder: Path, damage: Callable[[Path], None]
) -> None:
    name = SHARDS[2].name
    damage(folder / "cache" / name)
    _, refused = read_what_can_be_read(folder / "cache")
    assert refused >= 1
    capture(folder, ROWS)
    assert set(forwarded(folder)) == rows_of(name) and max(forwarded(folder).values()) == 1
    assert read_all(folder / "cache", ROWS) == read_all(made / "cache", ROWS)
    assert left_over(folder) == []


@pytest.mark.parametrize("name", [INDEX, MANIFEST])
@pytest.mark.parametrize("damage", [cut, halve, empty, flip_the_middle, Path.unlink])
def test_without_a_whole_index_the_shards_are_recognised_by_their_names_and_checksums(
    made: Path, folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """The manifest has the checksums: where it can no longer be parsed nothing is taken on trust."""
    damage(folder / "cache" / name)
    assert read_what_can_be_read(folder / "cache") == ({}, len(ROWS))
    capture(folder, ROWS)
    is_lost = name == MANIFEST and damage is not flip_the_middle
    assert forwarded(folder).total() == (len(ROWS) if is_lost else 0)
    assert files(folder / "cache") == files(made / "cache")


def test_a_manifest_damaged_anywhere_never_lets_a_damaged_shard_through(made: Path, folder: Path) -> None:
    draw = random.Random(8)
    for _ in range(12):
        shutil.rmtree(folder)
        shutil.copytree(made, folder)
        flip(folder / "cache" / MANIFEST, draw.randrange(8 * (made / "cache" / MANIFEST).stat().st_size))
        flip_the_middle(folder / "cache" / SHARDS[1].name)
        capture(folder, ROWS)
        assert rows_of(SHARDS[1].name) <= set(forwarded(folder))
        assert files(folder / "cache") == files(made / "cache")


def test_a_shard_of_other_settings_in_the_place_of_one_is_refused_and_captured_again(
    made: Path, folder: Path, tmp_path: Path
) -> None:
    capture(tmp_path, ROWS, max_entries=4)
    name, stranger = SHARDS[2].name, planned(ROWS)[2]
    other = sorted((tmp_path / "cache").glob("shard-*"))[0]
    shutil.copy(other, folder / "cache" / stranger.name)
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        read_all(folder / "cache", ROWS)
    capture(folder, ROWS)
    assert set(forwarded(folder)) == rows_of(name)
    assert read_all(folder / "cache", ROWS) == read_all(made / "cache", ROWS)


def test_two_shards_in_each_others_place_are_both_captured_again(made: Path, folder: Path) -> None:
    first, second = (folder / "cache" / SHARDS[place].name for place in (0, 3))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_all(folder / "cache", ROWS)
    capture(folder, ROWS)
    assert set(forwarded(folder)) == rows_of(first.name) | rows_of(second.name)
    assert read_all(folder / "cache", ROWS) == read_all(made / "cache", ROWS)


def test_a_stray_file_changes_nothing_that_is_read_and_the_next_capture_clears_it_away(made: Path, folder: Path) -> None:
    (folder / "cache" / "shard-0123456789abcdef.safetensors").write_bytes((folder / "cache" / SHARDS[0].name).read_bytes())
    (folder / "cache" / "notes.txt").write_text("mine")
    assert read_all(folder / "cache", ROWS) == read_all(made / "cache", ROWS)
    capture(folder, ROWS)
    assert files(folder / "cache") == files(made / "cache") and forwarded(folder).total() == 0


def test_a_shard_that_is_a_symbolic_link_is_taken_over_as_the_file_that_it_stands_for(folder: Path, tmp_path: Path) -> None:
    """As a DVC cache of type symlink leaves it: the link must not become the shard."""
    shard = folder / "cache" / SHARDS[0].name
    shutil.move(shard, tmp_path / "object")
    shard.symlink_to(tmp_path / "object")
    flip_the_middle(folder / "cache" / SHARDS[1].name)
    capture(folder, ROWS)
    assert set(forwarded(folder)) == rows_of(SHARDS[1].name)
    assert not shard.is_symlink()
