"""Laws of DVC's record of who works where: an entry whose number belongs to another process by now holds nobody up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc_stage import reproduce
from flows.stale_locks import RECORD, drop_stale_entries


@pytest.fixture
def sleeper() -> object:
    """A process that has nothing to do with DVC."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def write_record(root: Path, pid: int) -> None:
    (root / RECORD).parent.mkdir(parents=True, exist_ok=True)
    entry = {"pid": pid, "cmd": "dvc repro --single-item prepare"}
    (root / RECORD).write_text(json.dumps({"write": {str(root / "base"): entry}, "read": {str(root / "source"): [entry]}}))


def test_a_number_that_another_process_has_by_now_blocks_a_stage_until_the_entry_is_dropped(graph: Path, sleeper: int) -> None:
    write_record(graph, sleeper)
    state, message = reproduce("prepare", lambda _: None)
    assert state == "failed" and "another DVC process" in message, "DVC has learnt to tell: flows/stale_locks.py can go"
    assert drop_stale_entries(graph) == [sleeper]
    assert reproduce("prepare", lambda _: None)[0] == "ran"


def test_dvc_at_work_keeps_its_entries_and_so_does_a_process_that_is_gone(graph: Path) -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    dvc = subprocess.Popen([sys.executable, "-c", code, "dvc", "repro"], stdout=subprocess.PIPE)
    try:
        assert dvc.stdout is not None and dvc.stdout.readline()
        write_record(graph, dvc.pid)
        assert drop_stale_entries(graph) == []
    finally:
        dvc.kill()
        dvc.wait()
    assert drop_stale_entries(graph) == []  # DVC itself forgets this one
    assert reproduce("prepare", lambda _: None)[0] == "ran"


def test_without_a_record_there_is_nothing_to_drop(tmp_path: Path) -> None:
    assert drop_stale_entries(tmp_path) == [] and not os.listdir(tmp_path)
