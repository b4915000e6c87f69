"""Run a command so that it cannot outlive us, and hand its output over line by line.

    code = run_child([sys.executable, "-m", "dvc", "repro"], print)

Between us and the command stands a small supervisor (this file, run as a script): DVC leaves its stage running when it is told
to stop, and a parent-death signal reaches the direct child only. The supervisor has a session of its own, gets a SIGTERM when we
die (a SIGKILL of ours included), and ends the command's whole process group: SIGTERM, and SIGKILL after a grace.
Standard library only: the supervisor pays for this module's imports.
"""

import codecs
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType

STOP_GRACE_SECONDS = 30.0
"""From SIGTERM to SIGKILL: a training stage saves its checkpoint in that time."""
PROGRESS_SECONDS = 15.0
"""Between two states of a progress bar that are passed on."""
MAX_LINE_LENGTH = 8000
POLL_SECONDS = 0.5
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

INVISIBLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class StoppedError(Exception):
    """The command was ended because whoever waits for it has to end."""


class LineSplitter:
    """Bytes in, whole lines out: no blank ones, no escape sequences, and a progress bar's states (they end in CR) throttled."""

    def __init__(self, on_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.on_line, self.clock = on_line, clock
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""
        self._next_progress_seconds = float("-inf")

    def feed(self, part: bytes, *, is_last: bool = False) -> None:
        text = (self._pending + self._decoder.decode(part, final=is_last)).replace("\r\n", "\n")
        *pieces, self._pending = re.split(r"(\n|\r(?!$))", text)  # a CR at the end of the part may be half of a CRLF
        for line, end in zip(pieces[::2], pieces[1::2], strict=True):
            self._pass_on(line, is_progress=end == "\r")
        if is_last or len(self._pending) > MAX_LINE_LENGTH:
            self._pass_on(self._pending, is_progress=False)
            self._pending = ""

    def _pass_on(self, line: str, *, is_progress: bool) -> None:
        line = INVISIBLE.sub("", line).rstrip()
        if not line or (is_progress and self.clock() < self._next_progress_seconds):
            return
        if is_progress:
            self._next_progress_seconds = self.clock() + PROGRESS_SECONDS
        self.on_line(line if len(line) <= MAX_LINE_LENGTH else line[:MAX_LINE_LENGTH] + " …")


def run_child(
    command: Sequence[str],
    on_line: Callable[[str], None],
    environ: Mapping[str, str] | None = None,
    held_files: Sequence[int] = (),
    grace_seconds: float = STOP_GRACE_SECONDS,
    stopping: threading.Event | None = None,
) -> int:
    """Run it to its end and return its exit code (128 + N after signal N); both its streams come as lines, in their order.

    An exception here, as a signal handler raises it, ends the command before it goes on; in another thread than the main one
    `stopping` does that, and StoppedError is raised. `held_files` stay open until the last process of the command is gone: a lock
    on one of them outlives us if we are killed.
    Call it in the thread that stays: the parent-death signal is tied to the thread that started the child.
    """
    supervisor = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(grace_seconds)]
    process = subprocess.Popen(
        [*supervisor, *command],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=held_files,
    )
    splitter = LineSplitter(on_line)
    try:
        _read_lines(process, splitter, stopping)
    except BaseException:
        process.terminate()
        _read_lines(process, splitter)  # its last words: "stopped at step 120, the state is kept"
        raise
    return process.returncode


def _read_lines(process: subprocess.Popen[bytes], splitter: LineSplitter, stopping: threading.Event | None = None) -> None:
    """Until the process has ended and the pipe is empty. Not until the pipe's end: a daemon of the command's may keep it open."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    while True:
        if stopping is not None and stopping.is_set():
            raise StoppedError
        if select.select([descriptor], [], [], POLL_SECONDS)[0]:
            part = os.read(descriptor, 1 << 16)
            if not part:
                break
            splitter.feed(part)
        elif process.poll() is not None:
            break
    splitter.feed(b"", is_last=True)
    process.wait()
    process.stdout.close()


def supervise(client_pid: int, grace_seconds: float, command: Sequence[str]) -> int:
    """The supervisor: start the command in a process group of its own, see the whole group to its end, return the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is a group to pass it on to
    _control_process(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != client_pid:
        return 128 + signal.SIGTERM
    _control_process(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the group become our children, to be waited for
    child = os.fork()
    if child == 0:
        _become(command)
    with suppress(OSError):  # the child does it, too: whoever comes first
        os.setpgid(child, child)

    def end(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL if number == signal.SIGALRM else signal.SIGTERM)
        if number == signal.SIGTERM and signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, grace_seconds, POLL_SECONDS)  # again and again: it may be forking

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    code = 0
    with suppress(ChildProcessError):  # nobody of the group is left
        while True:
            pid, status = os.waitpid(-child, 0)
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                end(signal.SIGTERM, None)  # what the command has left behind
    return code if code >= 0 else 128 - code


def _become(command: Sequence[str]) -> None:
    try:
        os.setpgid(0, 0)
        _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)  # of the supervisor, should that be killed itself
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.execvp(command[0], list(command))
    except OSError as error:
        print(f"error: cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _control_process(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
