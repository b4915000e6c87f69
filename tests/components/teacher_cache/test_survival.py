"""Laws of captures that die: at any moment, at any step on the disk, again and again. The cache is the old or the new one."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.teacher_cache import record_index, shard_file
from tests.components.teacher_cache.conftest import (
    capture,
    files,
    forwarded,
    largest_shard,
    left_over,
    planned,
    read_all,
    rows_twice,
)
from tests.conftest import build_rows, end_of_child, start_child

ROWS = build_rows(60, seed=3)
NAP_SECONDS = 0.01
NUM_KILLS = 20

# ---- killed at random moments ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    capture(folder, ROWS)
    return files(folder / "cache")


@pytest.fixture(scope="module")
def duration(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that a slowed capture takes in a process of its own."""
    start = time.monotonic()
    assert end_of_child(start_child(lambda: capture(tmp_path_factory.mktemp("timed"), ROWS, nap_seconds=NAP_SECONDS))) == 0
    return time.monotonic() - start


def kill_after(seconds: float, folder: Path) -> bool:
    """Capture in another process and kill it; False when it was done by then."""
    child = start_child(lambda: capture(folder, ROWS, nap_seconds=NAP_SECONDS))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    code = end_of_child(child)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_twenty_captures_killed_at_random_moments_all_end_in_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], duration: float
) -> None:
    draw, equal, repeated, moments = random.Random(1), 0, [], []
    for trial in range(3 * NUM_KILLS):
        folder = tmp_path / str(trial)
        if not kill_after(draw.uniform(0, duration), folder):
            continue
        moments.append(len(forwarded(folder)))
        assert files(folder / "cache") in ({}, whole)
        capture(folder, ROWS)
        equal += files(folder / "cache") == whole and left_over(folder) == []
        repeated.append(rows_twice(folder))
        if len(repeated) == NUM_KILLS:
            break
    assert (equal, len(repeated)) == (NUM_KILLS, NUM_KILLS)
    assert max(repeated) <= largest_shard(ROWS), f"rows forwarded twice, by kill: {repeated}"
    print(f"{equal}/{NUM_KILLS} equal; rows forwarded before the kill {moments}, twice {repeated}, at most {largest_shard(ROWS)}")
    assert len(set(moments)) > NUM_KILLS / 4, "moments all over the capture"


def test_one_capture_killed_again_and_again_ends_in_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], duration: float
) -> None:
    draw = random.Random(2)
    kills = 0
    while kill_after(draw.uniform(0.1, 0.3) * duration, tmp_path) and kills < 60:
        kills += 1
        assert rows_twice(tmp_path) <= kills * largest_shard(ROWS)
    capture(tmp_path, ROWS)
    print(f"{kills} kills of one capture, {rows_twice(tmp_path)} rows forwarded twice, at most {largest_shard(ROWS)} a kill")
    assert kills >= 1 and files(tmp_path / "cache") == whole and left_over(tmp_path) == []


# ---- killed at every step on the disk ----

STEPS = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "fsync", "open", "chmod")
SHARDED = build_rows(12, seed=4)
OLD = SHARDED[3:9]
MORE = [*SHARDED, *build_rows(2, seed=5)]


def die_at(step: int) -> None:
    """Kill this process before its step number `step` on the disk; a file that is written then is left torn in two."""
    left = step

    def counted(function: Callable[..., Any], tear: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and tear:
                function(*arguments, **options)
                os.truncate(arguments[1], Path(arguments[1]).stat().st_size // 2)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    for module in (shard_file, record_index):
        module.save_file = counted(module.save_file, tear=True)


def killed_at_every_step(folder: Path, start: Path | None) -> Iterator[tuple[int, Path]]:
    """A folder for each step of a capture of SHARDED, as the kill at that step leaves it; `start`: what is there before."""
    step = 0
    while True:
        step += 1
        own = folder / str(step)
        if start is None:
            own.mkdir()
        else:
            shutil.copytree(start, own)

        def work(step: int = step, own: Path = own) -> None:
            die_at(step)
            capture(own, SHARDED)

        code = end_of_child(start_child(work))
        if code == 0:
            return
        assert code == -signal.SIGKILL
        yield step, own


def test_a_first_capture_killed_at_every_step_leaves_nothing_or_all_and_goes_on_to_the_same_bytes(ram: Path) -> None:
    capture(ram / "whole", SHARDED)
    whole, laws = files(ram / "whole" / "cache"), read_all(ram / "whole" / "cache", SHARDED)
    num_steps, num_published = 0, 0
    for num_steps, own in killed_at_every_step(ram, None):
        found = files(own / "cache")
        assert found in ({}, whole)
        if found:
            num_published += 1
            assert read_all(own / "cache", SHARDED) == laws
        capture(own, SHARDED)
        assert files(own / "cache") == whole, num_steps
        assert rows_twice(own) <= largest_shard(SHARDED), num_steps
        assert left_over(own) == [], num_steps
    print(f"killed before each of {num_steps} steps, {num_published} of them after the publication")
    assert len(planned(SHARDED)) >= 3 and num_steps > 50 and num_published > 3


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of some of the rows."""
    folder = tmp_path_factory.mktemp("older")
    capture(folder, OLD)
    (folder / "notes").unlink()
    return folder


def test_a_capture_over_an_older_cache_killed_at_every_step_is_old_or_new_and_loses_no_old_row(ram: Path, older: Path) -> None:
    shutil.copytree(older, ram / "whole")
    capture(ram / "whole", SHARDED)
    old, new = files(older / "cache"), files(ram / "whole" / "cache")
    laws = {"old": read_all(older / "cache", OLD), "new": read_all(ram / "whole" / "cache", SHARDED)}
    seen = {"absent": 0, "old": 0, "new": 0}
    for step, own in killed_at_every_step(ram, older):
        if not (own / "cache").exists():
            shutil.copytree(own, ram / "between")
        found = files(own / "cache")
        state = "old" if found == old else "new" if found == new else "absent"
        assert found or state == "absent", step
        seen[state] += 1
        if found:
            assert read_all(own / "cache", OLD if state == "old" else SHARDED) == laws[state]
        capture(own, SHARDED)
        assert files(own / "cache") == new, step
        assert rows_twice(own) <= largest_shard(SHARDED), step
        assert not {tuple(row.input_ids) for row in OLD} & set(forwarded(own)), step
        assert left_over(own) == [], step
    print(f"killed before each of {sum(seen.values())} steps: {seen}")
    assert seen["old"] > 40 and seen["absent"] == 1 and seen["new"] > 3, seen
    assert_going_back_or_on_loses_nothing(ram / "between")


def assert_going_back_or_on_loses_nothing(between: Path) -> None:
    """Killed between the two renames; and then the next capture is not the same one."""
    for name, rows, changes, num_rows in (
        ("back", OLD, {}, 0),
        ("more", MORE, {}, len(MORE) - len(OLD)),
        ("other laws", OLD, {"tail_mass": 0.2}, len(OLD)),
    ):
        own = between.with_name(name)
        shutil.copytree(between, own)
        (own / "notes").unlink()
        capture(own, rows, **changes)
        assert forwarded(own).total() <= num_rows, name
        read_all(own / "cache", rows)
    capture(between.with_name("other laws"), SHARDED)
    assert forwarded(between.with_name("other laws")).total() == len(OLD), "the killed publication is finished, later"
