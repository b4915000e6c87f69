"""Processes that outlive the command that started them, and are found again: by a record of pid and start time, and by a mark.

Every process of the stack, and all that it starts, carries BALLAST_STACK=<state folder> in its environment. So nothing of ours is
lost when a parent is killed, and nothing of anybody else's is ever touched: a pid alone may belong to a stranger after a reboot.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

MARK, SERVICE_MARK = "BALLAST_STACK", "BALLAST_STACK_SERVICE"
POLL_SECONDS = 0.1
KILLED_SECONDS = 10.0
"""A process that was sent SIGKILL is gone by then, unless the kernel itself waits for a disk."""
START_TOLERANCE_SECONDS = 1.0
"""The start time of a process is told from the boot time, which moves a little when the clock is set."""


class Record(NamedTuple):
    """One service that was started; `url` is empty for a worker."""

    name: str
    pid: int
    started: float
    """Seconds since the epoch."""
    url: str
    log: str


def read_records(state: Path) -> dict[str, Record]:
    """What was started, dead or alive. A record cut short by a power cut is none."""
    records = {}
    for file in sorted(state.glob("*.json")):
        with suppress(ValueError, TypeError):
            records[file.stem] = Record(**json.loads(file.read_text(encoding="utf-8")))
    return records


def write_record(state: Path, record: Record) -> None:
    file = state / f"{record.name}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record._asdict()), encoding="utf-8")
    part.replace(file)


def forget(state: Path, name: str) -> None:
    (state / f"{name}.json").unlink(missing_ok=True)


def find(record: Record | None) -> psutil.Process | None:
    """The running process of a record; None if it has ended, also when a stranger has its pid by now."""
    if record is None:
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(record.pid)
        is_same = abs(process.create_time() - record.started) <= START_TOLERANCE_SECONDS
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    return None


def start(state: Path, name: str, command: Sequence[str], environ: Mapping[str, str], cwd: Path, url: str = "") -> Record:
    """Start it in a session of its own, with its output in a log; the log before that is kept as `.log.1`."""
    log = state / f"{name}.log"
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environ, MARK: str(state), SERVICE_MARK: name},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = Record(name, process.pid, psutil.Process(process.pid).create_time(), url, str(log))
    write_record(state, record)
    return record


def find_marked(state: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> list[psutil.Process]:
    """Processes of the stack whose service is wanted, and what they have started; never this process or what it runs in."""
    myself = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            marks = process.environ()
            is_ours = marks.get(MARK) == str(state) and is_wanted(marks.get(SERVICE_MARK, ""))
            if is_ours and process.pid not in myself and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(first: Iterable[psutil.Process], find_all: Callable[[], list[psutil.Process]], grace_seconds: float) -> int:
    """SIGTERM to the first ones, time for them and theirs, and SIGKILL to what is left; how many had to be killed."""
    _send(first, signal.SIGTERM)
    _wait_until_gone(find_all, grace_seconds)
    killed = find_all()
    _send(killed, signal.SIGKILL)
    _wait_until_gone(find_all, KILLED_SECONDS)
    return len(killed)


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _wait_until_gone(find_all: Callable[[], list[psutil.Process]], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while find_all() and time.monotonic() < give_up:
        time.sleep(POLL_SECONDS)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Resident memory of all of them together; pages that they share are counted for each."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total
