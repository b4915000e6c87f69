"""Laws of the lock on a checkout: one pipeline, with its stages, and nobody else as long as one of them is at work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import BallastError
from flows.pipeline_lock import hold_lock, share_lock


def test_a_second_pipeline_is_refused_and_told_whom_it_waits_for(tmp_path: Path) -> None:
    with hold_lock(tmp_path), pytest.raises(BallastError, match=rf"another pipeline \(pid {os.getpid()}\)"), hold_lock(tmp_path):
        pass
    with hold_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_pipeline_whose_stage_still_ends_is_told_apart(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with hold_lock(tmp_path) as lock:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(gone.pid).encode(), 0)
        with pytest.raises(BallastError, match="was killed"), hold_lock(tmp_path):
            pass


def test_the_stages_of_a_pipeline_share_its_lock_and_those_of_another_do_not(tmp_path: Path) -> None:
    with hold_lock(tmp_path, "run-1"):
        with share_lock(tmp_path, "run-1"), share_lock(tmp_path, "run-1"):
            pass
        with pytest.raises(BallastError, match=r"flow run run-2.*disk: remote"), share_lock(tmp_path, "run-2"):
            pass


def test_a_stage_that_outlives_its_pipeline_keeps_everybody_out(tmp_path: Path) -> None:
    with hold_lock(tmp_path, "run-1"):
        stage = share_lock(tmp_path, "run-1")
        stage.__enter__()
    with pytest.raises(BallastError, match="flow run run-1"), hold_lock(tmp_path):
        pass
    stage.__exit__(None, None, None)
    with hold_lock(tmp_path):
        pass


def test_of_many_pipelines_that_begin_at_once_one_at_most_gets_the_lock_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom components.errors import BallastError\nfrom flows.pipeline_lock import hold_lock\n"
        "for _ in range(30):\n  try:\n    with hold_lock(pathlib.Path('.')):\n"
        "      with open('inside', 'x'): pass\n      time.sleep(.002)\n      pathlib.Path('inside').unlink()\n"
        "  except BallastError: pass\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environ) for _ in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
