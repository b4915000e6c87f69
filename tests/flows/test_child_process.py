"""Laws of a child process: its lines come whole and in order, its code comes back, and nothing of it outlives us."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.child_process import MAX_LINE_LENGTH, PROGRESS_SECONDS, LineSplitter, run_child
from flows.warm_start import Process

ROOT = Path(__file__).resolve().parents[2]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a parent-death signal needs Linux")


def until(is_so: Callable[[], Any], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(is_so())


def is_gone(pid: int) -> bool:
    return Process.find(pid) is None


def split(*parts: bytes) -> list[str]:
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    for part in parts:
        splitter.feed(part)
    splitter.feed(b"", is_last=True)
    return lines


def run(script: str, **options: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    return run_child([sys.executable, "-c", script], lines.append, **options), lines


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\nt", b"wo"], ["one", "two"]),
        ([b"one\r\ntwo\r", b"\nthree\r\n"], ["one", "two", "three"]),
        ([b"\n\n  \none\n\n"], ["one"]),
        ([b"\x1b[1mbold\x1b[0m\x00\n"], ["bold"]),
        (["ü".encode()[:1], "ü".encode()[1:] + b"\n"], ["ü"]),
        ([b"broken \xff byte\n"], ["broken \ufffd byte"]),
        ([b"  0%|  ", b"\r 50%|# ", b"\r100%|##\n", b"done\n"], ["  0%|", "100%|##", "done"]),
        ([b"x" * 3 * MAX_LINE_LENGTH + b"\n"], ["x" * MAX_LINE_LENGTH + " …"]),
    ],
)
def test_bytes_become_lines_for_people(parts: list[bytes], lines: list[str]) -> None:
    assert split(*parts) == lines


def test_a_progress_bar_shows_its_state_now_and_then() -> None:
    lines: list[str] = []
    now = [0.0]
    splitter = LineSplitter(lines.append, clock=lambda: now[0])
    for step in range(100):
        now[0] = step * PROGRESS_SECONDS / 10
        splitter.feed(f"\rstep {step}".encode())
    splitter.feed(b"\nnext\n")
    assert lines == [*(f"step {step}" for step in range(0, 91, 10)), "step 99", "next"]


@pytest.mark.parametrize(
    ("script", "code"),
    [("pass", 0), ("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_code_comes_back(script: str, code: int) -> None:
    assert run(script) == (code, [])


def test_a_command_that_does_not_exist_is_an_exit_code_and_a_line() -> None:
    lines: list[str] = []
    assert run_child(["no-such-program"], lines.append) == 127
    assert lines == ["error: cannot run no-such-program: No such file or directory"]


def test_both_streams_come_in_their_order() -> None:
    script = "import sys\nfor i in range(3): print('out', i, flush=True); print('err', i, file=sys.stderr)"
    assert run(script) == (0, [f"{name} {i}" for i in range(3) for name in ("out", "err")])


def test_the_command_starts_with_ordinary_signals_and_no_input() -> None:
    script = "import signal as s, sys; print(s.pthread_sigmask(0, []), s.getsignal(15).name, repr(sys.stdin.read()))"
    assert run(script)[1] == ["set() SIG_DFL ''"]


def test_what_the_command_leaves_behind_ends_with_it() -> None:
    script = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    code, lines = run(script)
    assert code == 0
    assert until(lambda: is_gone(int(lines[0])), seconds=1.0)


# A shell stands between, as below DVC; the last one prints its pid and sleeps.
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
DEAF_SLEEPER = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


def below_a_shell(script: str) -> list[str]:
    return ["sh", "-c", f"{shlex.join([sys.executable, '-c', script])}; true"]


@pytest.mark.parametrize("script", [SLEEPER, DEAF_SLEEPER], ids=["obedient", "deaf"])
def test_an_exception_ends_the_whole_command(script: str) -> None:
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child(below_a_shell(script), stop, grace_seconds=0.5)
    assert is_gone(int(lines[0]))


def start_client(script: str, grace_seconds: float, lock: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that runs the script in a child with a lock on the file, and the pid of the script's process."""
    client = f"""
import fcntl, sys
from flows.child_process import run_child
with open({str(lock)!r}, "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    run_child({below_a_shell(script)!r}, lambda line: print(line, flush=True), None, [lock.fileno()], {grace_seconds})
"""
    process = subprocess.Popen([sys.executable, "-c", client], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def is_locked(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@on_linux
@pytest.mark.parametrize("script", [SLEEPER, DEAF_SLEEPER], ids=["obedient", "deaf"])
def test_a_killed_client_takes_the_command_along_and_its_lock_stays_till_then(script: str, tmp_path: Path) -> None:
    client, pid = start_client(script, 0.7, tmp_path / "lock")
    client.kill()
    client.wait()
    if script == DEAF_SLEEPER:
        assert not is_gone(pid)
        assert is_locked(tmp_path / "lock")
    assert until(lambda: is_gone(pid), seconds=5.0)
    assert until(lambda: not is_locked(tmp_path / "lock"), seconds=5.0)
    client.communicate()


@on_linux
def test_a_killed_supervisor_takes_the_command_along(tmp_path: Path) -> None:
    """Not what the command has started: that is a stage of ours, which looks after its `dvc` itself."""
    client, pid = start_client(SLEEPER, 5.0, tmp_path / "lock")
    (supervisor,) = [int(pid) for pid in Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()]
    (command,) = [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]
    os.kill(supervisor, signal.SIGKILL)
    assert until(lambda: is_gone(command), seconds=5.0)
    os.kill(pid, signal.SIGKILL)
    client.communicate()
