"""Laws of the work on all cores: results in order, faults come through, nothing outlives the process that asked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.data_preparation.workers import VARIABLE, count_processes, map_on_cores
from components.errors import DataError, ParamsError

ROOT = Path(__file__).resolve().parents[3]
ENDLESS = """
import os, sys, time
from pathlib import Path
from components.data_preparation.workers import map_on_cores

def sleep(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

list(map_on_cores(sleep, [1, 2, 3]))
"""


@pytest.mark.parametrize("num_processes", ["1", "3"])
def test_results_come_in_the_order_of_the_tasks(num_processes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, num_processes)
    offset = 7  # closures need no pickling
    assert list(map_on_cores(lambda number: number + offset, range(20))) == list(range(7, 27))


def test_several_processes_share_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3")
    assert count_processes() == 3

    def who(_: int) -> int:
        time.sleep(0.05)
        return os.getpid()

    found = set(map_on_cores(who, range(12)))
    assert len(found) == 3
    assert os.getpid() not in found


def test_one_task_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3")
    assert list(map_on_cores(lambda _: os.getpid(), [1])) == [os.getpid()]


@pytest.mark.parametrize("num_processes", ["1", "2"])
def test_a_fault_for_people_comes_through_and_ends_the_work(
    num_processes: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, num_processes)

    def work(number: int) -> None:
        (tmp_path / str(number)).touch()
        raise DataError(f"row {number} is bad")

    with pytest.raises(DataError, match="row 0 is bad"):
        list(map_on_cores(work, range(200)))
    assert len(list(tmp_path.iterdir())) < 200


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_asked(how: signal.Signals, tmp_path: Path) -> None:
    environ = {**os.environ, VARIABLE: "2"}
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=ROOT, env=environ)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(file.name) for file in tmp_path.iterdir()]
    assert all(is_alive(worker) for worker in workers)
    child.send_signal(how)
    child.wait(30)
    wait_until(lambda: not any(is_alive(worker) for worker in workers))


def wait_until(true: object, seconds: float = 60.0) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_worker_is_said_with_the_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")
    with pytest.raises(DataError, match=rf"one of 2 worker processes was killed.*{VARIABLE}=1"):
        list(map_on_cores(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(4)))


@pytest.mark.parametrize("said", ["two", "0", "-1", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, said)
    with pytest.raises(ParamsError, match=f"{VARIABLE} is '{said}'. Set it to a number of processes"):
        count_processes()
