"""Warm start, the stage's side: run this stage in a process that has torch, transformers and mlflow loaded already.

`dvc repro` starts some thirty `python -m flows.<stage>` processes, and each would import for 6-8 s. So the first stage below a
`dvc` process starts a server (flows/warm_server.py), which imports the third-party libraries once and forks a fresh child for
every stage. This process then only lends the child its streams, environment and folder, passes signals on and returns its code.

    if __name__ == "__main__":  # before anything heavy is imported
        if (code := run_warm("flows.compare", sys.argv[1:])) is not None:
            sys.exit(code)
        die_with_parent()

It is an optimisation and nothing else: whatever goes wrong before the child has begun means "run it here" (None).
Switched off by BALLAST_WARM_START=0, outside DVC, off Linux, and for the ranks of torchrun.
Standard library only, and little of it: every stage pays for this module's imports.
"""

import json
import os
import select
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NamedTuple, Self
from zlib import crc32

PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHILD_MARKER = "BALLAST_WARM_CHILD"  # holds the forked child's pid, so that what the child itself starts is not taken for it

# The server says READY, the client sends its request and descriptors, the child says BEGUN right before it runs the stage (so
# without BEGUN nothing has happened, and falling back is safe), the server says EXITED and one byte: the code.
# After BEGUN every byte from the client is the number of a signal for the child.
READY, REFUSED, BEGUN, EXITED = b"R", b"N", b"B", b"X"
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LISTENING_DESCRIPTOR = 3  # where the server finds its socket, bound by the stage that started it
PRELOAD_LIMIT_SECONDS, REPLY_LIMIT_SECONDS, POLL_SECONDS = 60.0, 10.0, 1.0

# Libraries read variables while they are imported, so a server serves only stages that would have imported under the same ones.
# These may differ: nothing that is preloaded reads them at import.
HARMLESS_VARIABLES = frozenset({"_", "PWD", "OLDPWD", "SHLVL"})
HARMLESS_PREFIXES = ("BALLAST_", "DVC_", "PREFECT_")


class Process(NamedTuple):
    """One process for good: a pid comes again, but not with the same start time."""

    pid: int
    start_ticks: int
    parent_pid: int

    @classmethod
    def find(cls, pid: int) -> Self | None:
        """The running process of this pid; None when there is none, or only its zombie."""
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()  # the name before it may hold spaces and brackets
        return cls(pid, int(fields[19]), int(fields[1])) if fields and fields[0] not in (b"Z", b"X") else None

    def is_running(self) -> bool:
        now = Process.find(self.pid)
        return now is not None and now.start_ticks == self.start_ticks

    def command(self) -> list[str]:
        return os.fsdecode(_read(f"/proc/{self.pid}/cmdline")).split("\0")[:-1]


def run_warm(module: str, argv: list[str]) -> int | None:
    """Run `python -m module *argv` in a forked child of the warm server and return its exit code (128 + N after signal N).

    None: the caller has to run the stage itself, in this process.
    """
    dvcs = _find_dvcs() if _is_wanted() else []
    if not dvcs or not {"-s", "--single-item"}.isdisjoint(dvcs[-1].command()):  # no second stage would follow
        return None
    unheard: list[int] = []
    connection = _find_server(owner=dvcs[-1])
    if connection is not None:
        with connection, _forward_signals(connection, unheard):
            if _hand_over(connection, module, argv):
                return _wait_for_exit(connection, dvc=dvcs[0])
    if not dvcs[0].is_running():  # it went while we waited for the server: nobody wants this stage any more
        unheard.append(signal.SIGTERM)
    for number in unheard:
        os.kill(os.getpid(), number)
    return None


def die_with_parent() -> None:
    """From now on this process gets a SIGTERM when the `dvc` above it is gone. Without one, and in a warm child, nothing changes.

    DVC leaves its stage running when it is killed. The kernel's parent-death signal does not help where a shell stands between
    the two, hence a thread that looks once a second.
    """
    import threading

    dvcs = _find_dvcs() if "DVC_ROOT" in os.environ and not _is_warm_child() else []

    def watch() -> None:
        while dvcs[0].is_running():
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    if dvcs:
        threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def describe_imports(environ: Mapping[str, str]) -> list[object]:
    """What decides how libraries import, as JSON: stages of equal descriptions may share a server."""
    kept = {k: v for k, v in environ.items() if k not in HARMLESS_VARIABLES and not k.startswith(HARMLESS_PREFIXES)}
    return [kept, list(sys.flags), list(sys.warnoptions), {name: str(value) for name, value in sys._xoptions.items()}]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # the process has just ended (that is ESRCH, not ENOENT, when it ends between open and read)
        return b""


def _is_warm_child() -> bool:
    return os.environ.get(CHILD_MARKER) == str(os.getpid())


def _is_wanted() -> bool:
    is_on = sys.platform == "linux" and "DVC_ROOT" in os.environ and os.environ.get("BALLAST_WARM_START") != "0"
    is_rank = not os.environ.keys().isdisjoint({"WORLD_SIZE", "RANK"})
    is_traced = sys.gettrace() is not None  # a debugger or a coverage run wants the stage in this process
    return is_on and not is_rank and not is_traced and not _is_warm_child()


def _find_dvcs() -> list[Process]:
    """The `dvc` processes above this one, and the pipeline above them, nearest first, up to the first other program."""
    found: list[Process] = []
    ancestor = Process.find(os.getppid())
    while ancestor is not None:
        if _is_dvc(ancestor.command()):
            found.append(ancestor)
        elif found:
            break
        ancestor = Process.find(ancestor.parent_pid)
    return found


def _is_dvc(command: list[str]) -> bool:
    """Whether it is `dvc`, `python .../dvc`, `python -m dvc`, or `python -m flows.pipeline` and the supervisor below it (flows/
    child_process.py), which call dvc stage by stage. A shell whose script mentions them is not.
    """
    program, *words = command or [""]
    if os.path.basename(program).startswith("python"):
        program = next((word for word in words if not word.startswith("-")), "")
    return os.path.basename(program) in ("dvc", "flows.pipeline", "child_process.py")


def _find_server(owner: Process) -> socket.socket | None:
    """A connection to the owner's server, ready to fork; the first stage starts it. None: there will be none.

    The first stage waits for it, too: by itself it would import the same at the same time, and both would be slower.
    A server that has died refuses connections and is not replaced: its successors would fail alike, at 7 s a stage.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = _socket_path(owner)
        try:
            connection.connect(path)
        except FileNotFoundError:
            with suppress(OSError):  # another stage was quicker
                _start_server(path, owner)
            connection.connect(path)
        connection.settimeout(max(os.stat(path).st_mtime + PRELOAD_LIMIT_SECONDS - time.time(), 1.0))
        if connection.recv(1) == READY:
            return connection
    except Exception:  # an optimisation never fails a stage
        pass
    connection.close()
    return None


def _socket_path(owner: Process) -> str:
    """One socket for each owner, interpreter and project, in a folder that is this user's alone."""
    folder = os.path.join(tempfile.gettempdir(), f"ballast-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder")
    key = crc32(os.fsencode(f"{sys.executable}\0{PROJECT_ROOT}"))
    return f"{folder}/{owner.pid}-{owner.start_ticks}-{key:08x}.sock"


def _start_server(path: str, owner: Process) -> None:
    """Bind the socket, which only one of several stages can, and start the server on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(64)
        middle = os.fork()
        if middle == 0:  # it ends at once, so that the server is no child of the stage, which may wait for its children
            try:
                os.setsid()
                if os.fork() == 0:
                    _become_server(listener, path, owner)
            finally:
                os._exit(0)
    os.waitpid(middle, 0)


def _become_server(listener: socket.socket, path: str, owner: Process) -> None:
    """Keep no descriptor of the stage's: whoever reads our caller's output would wait for the server's end."""
    log = os.open(f"{path.removesuffix('.sock')}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2), (listener.fileno(), LISTENING_DESCRIPTOR)):
        os.dup2(source, target)
    os.set_inheritable(LISTENING_DESCRIPTOR, True)  # dup2 onto itself changes nothing
    os.closerange(LISTENING_DESCRIPTOR + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir(PROJECT_ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "flows.warm_server", str(owner.pid), str(owner.start_ticks)])


def _hand_over(connection: socket.socket, module: str, argv: list[str]) -> bool:
    """Send the stage to the server, with our three streams. Returns whether it has begun."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    ignored = [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    stage = {"module": module, "argv": argv, "cwd": os.getcwd(), "umask": mask, "ignored_signals": ignored}
    try:
        request = json.dumps({**stage, "environ": dict(os.environ), "imports": describe_imports(os.environ)}).encode()
        connection.settimeout(REPLY_LIMIT_SECONDS)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        return connection.recv(1) == BEGUN
    except Exception:
        return False


@contextmanager
def _forward_signals(connection: socket.socket, came: list[int]) -> Iterator[None]:
    """Signals go to the stage instead of acting on this process, and into the list, for the case that it has not begun."""

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        with suppress(OSError):  # the child may have ended just now
            connection.send(bytes([number]))

    kept = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    old_handlers = {number: signal.signal(number, forward) for number in kept}
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _wait_for_exit(connection: socket.socket, dvc: Process) -> int:
    """The child's exit code, when it comes. The end of dvc, which orphans its stages, counts as a SIGTERM."""
    is_orphan = False
    while not select.select([connection], [], [], POLL_SECONDS)[0]:
        if not is_orphan and not dvc.is_running():
            is_orphan = True
            os.kill(os.getpid(), signal.SIGTERM)  # forwarded
    with suppress(OSError):
        answer = connection.recv(2)
        if answer[:1] == EXITED and len(answer) == 2:
            return answer[1]
    print("warm start: the server is gone, and the stage was killed with it", file=sys.stderr)
    return 128 + signal.SIGKILL
