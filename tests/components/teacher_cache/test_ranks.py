"""Laws of captures that share the work: started at once, as ranks, with one of them killed; the bytes are those of one alone.

torchrun and accelerate run this very file as the ranks' program: `torchrun ... test_ranks.py <folder>`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the ranks have only this folder
import pytest

from components.artifacts import ROOT
from components.teacher_cache import publication
from components.teacher_cache.writer import Rank
from tests.components.teacher_cache.conftest import (
    capture,
    files,
    forwarded,
    largest_shard,
    left_over,
    planned,
    rows_twice,
)
from tests.conftest import build_rows, end_of_child, start_child

ROWS = build_rows(60, seed=3)
NAP_SECONDS = 0.01
WITHOUT = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    capture(folder, ROWS)
    return files(folder / "cache")


def shared(folder: Path, number: int, *, dies_after: int | None = None, rank: Rank | None = None) -> Callable[[], Any]:
    """One process's part, which leaves the number of its forward passes and may kill itself."""
    passes = 0

    def count() -> None:
        nonlocal passes
        passes += 1
        (folder / f"passes-{number}").write_text(str(passes))
        if passes == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: capture(folder, ROWS, react=count, nap_seconds=NAP_SECONDS, rank=rank or Rank())


def num_busy(folder: Path) -> int:
    """Processes that forwarded something."""
    return len(list(folder.glob("passes-*")))


@pytest.mark.parametrize("num_processes", [2, 4])
def test_captures_started_at_once_share_the_rows_and_forward_none_twice(
    ram: Path, whole: dict[str, bytes], num_processes: int
) -> None:
    """A shard is claimed, and looked at once more, before its first row: so there is no race to bound."""
    children = [start_child(shared(ram, number)) for number in range(num_processes)]
    assert [end_of_child(child) for child in children] == [0] * num_processes
    assert files(ram / "cache") == whole
    assert (forwarded(ram).total(), rows_twice(ram)) == (len(ROWS), 0)
    assert num_busy(ram) == num_processes and left_over(ram) == []


@pytest.mark.parametrize("num_processes", [2, 4])
def test_the_shard_of_one_that_is_killed_is_finished_by_the_others(
    ram: Path, whole: dict[str, bytes], num_processes: int
) -> None:
    children = [start_child(shared(ram, number, dies_after=3 if number == 0 else None)) for number in range(num_processes)]
    codes = [end_of_child(child) for child in children]
    assert codes == [-signal.SIGKILL] + [0] * (num_processes - 1)
    assert files(ram / "cache") == whole and left_over(ram) == []
    assert rows_twice(ram) <= largest_shard(ROWS)


def test_ranks_end_in_the_bytes_of_one_and_only_the_first_publishes(ram: Path, whole: dict[str, bytes]) -> None:
    second = start_child(shared(ram, 1, rank=Rank(1, 2)))
    assert end_of_child(second) == 0 and not (ram / "cache").exists()
    assert end_of_child(start_child(shared(ram, 0, rank=Rank(0, 2)))) == 0
    assert files(ram / "cache") == whole
    assert (rows_twice(ram), num_busy(ram), left_over(ram)) == (0, 1, [])


def test_two_ranks_begin_at_different_shards_and_both_capture(ram: Path, whole: dict[str, bytes]) -> None:
    children = [start_child(shared(ram, number, rank=Rank(number, 2))) for number in range(2)]
    assert [end_of_child(child) for child in children] == [0, 0]
    assert files(ram / "cache") == whole
    assert (rows_twice(ram), num_busy(ram), left_over(ram)) == (0, 2, [])


def test_when_the_second_rank_is_killed_in_the_middle_the_first_finishes_alone(ram: Path, whole: dict[str, bytes]) -> None:
    first = start_child(shared(ram, 0, rank=Rank(0, 2)))
    second = start_child(shared(ram, 1, rank=Rank(1, 2), dies_after=3))
    assert [end_of_child(first), end_of_child(second)] == [0, -signal.SIGKILL]
    assert files(ram / "cache") == whole and left_over(ram) == []
    assert num_busy(ram) == 2 and rows_twice(ram) <= largest_shard(ROWS)


def test_a_rank_that_comes_when_all_is_published_leaves_nothing_behind(ram: Path) -> None:
    capture(ram, ROWS)
    assert capture(ram, ROWS, rank=Rank(1, 2)) is None
    assert left_over(ram) == []


def test_what_killed_captures_have_half_written_does_not_pile_up(ram: Path) -> None:
    child = start_child(shared(ram, 0, dies_after=4))
    assert end_of_child(child) == -signal.SIGKILL
    (marker,) = list((ram / ".work").rglob("shard-*.json"))[:1]
    torn = [marker.with_name(f"{planned(ROWS)[4].name}.123.partial"), marker.with_name(f".{marker.name}.abcdefgh")]
    for file in torn:
        file.write_bytes(b"half")
    capture(ram, ROWS, react=lambda: [pytest.fail(f"{file} is still there") for file in torn if file.exists()])


def test_captures_of_other_rows_at_once_leave_each_other_alone(ram: Path) -> None:
    """Both are published, one after the other; the last one stays."""
    fewer = ROWS[:40]
    children = [start_child(lambda rows=rows: capture(ram, rows, nap_seconds=NAP_SECONDS)) for rows in (ROWS, fewer)]
    assert [end_of_child(child) for child in children] == [0, 0]
    assert left_over(ram) == []
    total = forwarded(ram).total()
    for rows in (ROWS, fewer):
        capture(ram, rows)
    assert forwarded(ram).total() - total <= len(ROWS) - len(fewer)


def test_work_that_is_cleared_while_it_is_looked_at_is_only_not_taken_over(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work folder of a killed capture of other rows, which a third capture has just cleared away."""
    assert end_of_child(start_child(shared(ram, 0, dies_after=6))) == -signal.SIGKILL
    (killed,) = (ram / ".work").glob("*/*")
    name = planned(ROWS)[0].name
    find = publication.finished_shard
    assert find(killed, name) is not None

    def find_and_clear(work: Path, wanted: str) -> Any:
        entry = find(work, wanted)
        shutil.rmtree(killed)
        return entry

    monkeypatch.setattr(publication, "finished_shard", find_and_clear)
    assert publication.adopt_shard(killed.with_name("own"), name) is None


# ---- launchers ----


def main(folder: Path) -> None:
    """As flows.cache_teacher does it: the rank is what the launcher has put into the environment."""
    rank = Rank.of_environment(os.environ)
    for name, dies_after in {"all": None, "killed": 4}.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        (own / f"rank-{rank.number}.json").write_text(json.dumps([rank.number, rank.count, rank.local]))
        while len(list(own.glob("rank-*.json"))) < rank.count:  # the first must not be done before the second is there
            time.sleep(0.01)
        shared(own, rank.number, dies_after=dies_after if rank.number else None, rank=rank)()


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"],
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Folder and errors by launcher, all at once: they mostly wait for imports."""
    environ = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    running = {}
    for name, launcher in LAUNCHERS.items():
        folder = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", *launcher, __file__, str(folder)]
        running[name] = folder, subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
    return {name: (folder, process.communicate(timeout=240)[1]) for name, (folder, process) in running.items()}


@pytest.mark.multi_process
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_of_a_launcher_both_capture_and_end_in_the_bytes_of_one(
    launched: dict[str, tuple[Path, str]], whole: dict[str, bytes], launcher: str
) -> None:
    folder, errors = launched[launcher]
    own = folder / "all"
    ranks = sorted(json.loads(file.read_text()) for file in own.glob("rank-*.json"))
    assert ranks == [[0, 2, 0], [1, 2, 1]], f"as many ranks as were asked for; {errors[-4000:]}"
    assert files(own / "cache") == whole
    assert (forwarded(own).total(), num_busy(own), left_over(own)) == (len(ROWS), 2, [])


@pytest.mark.multi_process
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_after_a_launched_rank_was_killed_one_process_finishes_what_is_missing(
    launched: dict[str, tuple[Path, str]], whole: dict[str, bytes], launcher: str
) -> None:
    """The launcher ends the other rank too, so this is two kills, or the first rank has finished alone before."""
    folder, errors = launched[launcher]
    own = folder / "killed"
    assert "SIGKILL" in errors and num_busy(own) == 2
    capture(own, ROWS)
    assert files(own / "cache") == whole and left_over(own) == []
    assert rows_twice(own) <= 2 * largest_shard(ROWS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
