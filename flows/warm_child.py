"""Warm start, the forked child: become what a new `python -m <module>` would have been, run the stage, leave.

Nothing here may differ for the stage from a cold start, except that its libraries are loaded already (and share one hash seed),
that its output is passed on line by line, and that it has a session of its own.
"""

import atexit
import ctypes
import gc
import importlib
import io
import os
import random
import runpy
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from flows.warm_start import CHILD_MARKER

PR_SET_PDEATHSIG = 1


def die_with(server_pid: int) -> None:
    """The kernel kills this process when the server dies: without the server nobody would know of the stage."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != server_pid:
        raise ProcessLookupError("the server died first")


def adopt(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take over the client's session, streams, environment, signals and path, and randomness of one's own.

    The stream objects stay, only the descriptors below them change: log handlers made during the imports hold them.
    """
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    os.environ[CHILD_MARKER] = str(os.getpid())
    adopt_signals(set(request["ignored_signals"]))
    sys.argv = ["-m", *request["argv"]]  # run_module puts the module's file in front
    if not sys.flags.safe_path:
        sys.path[0] = request["cwd"]
    importlib.invalidate_caches()
    reseed()


def adopt_signals(ignored: set[int]) -> None:
    """What the client ignores (a stage below nohup, say) stays ignored, the rest is as a new interpreter has it."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        wanted = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if number in ignored:
            wanted = signal.SIG_IGN
        if signal.getsignal(number) not in (wanted, None):  # None: set by C code (faulthandler), not ours
            signal.signal(number, wanted)


def reseed() -> None:
    """Or every stage would draw the same numbers: these generators took their seeds while the server imported them."""
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()  # torch.seed() would prepare CUDA's generators, too


def run_stage(module: str) -> NoReturn:
    """Run it and leave as an interpreter leaves, but for its last act, the destruction of every module (0.4 to 1 s here)."""
    code = execute(module)
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads; nothing public wakes those of an open executor
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    atexit._run_exitfuncs()
    for thing in gc.get_objects():  # a file that was left open still holds what was written last
        if issubclass(type(thing), io.IOBase):
            with suppress(Exception):
                thing.flush()
    is_flushed = flush_streams()
    os._exit(code if is_flushed or code else 120)  # 120: an interpreter's code when its last output was lost


def execute(module: str) -> int:
    """The exit code that `python -m module` would have had."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__ and error.__traceback__.tb_next  # without the frame of this function
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def flush_streams() -> bool:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    return True
