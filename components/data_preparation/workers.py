"""Work on all cores: one function over many tasks, in processes that end with this one.

The processes are forked, so the function (with its tokenizer, its index) is inherited and never pickled; tasks and results are.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from components.errors import DataError, ParamsError

VARIABLE = "BALLAST_NUM_PROCESSES"
"""Processes at most, where not every core is ours; what is made does not depend on it."""
PR_SET_PDEATHSIG = 1
T = TypeVar("T")
R = TypeVar("R")

_inherited: Callable[[Any], Any] | None = None


def count_processes() -> int:
    """All cores that this process may use, or what BALLAST_NUM_PROCESSES says."""
    said = os.environ.get(VARIABLE, "").strip()
    if not said:
        return len(os.sched_getaffinity(0))
    if not said.isdigit() or int(said) < 1:
        raise ParamsError(f"{VARIABLE} is {said!r}. Set it to a number of processes from 1 on, or unset it")
    return int(said)


def map_on_cores(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """Results in the order of the tasks; a single task, or a single core, needs no further process.

    The first exception of a task is raised here, and tasks that nobody has begun are given up.
    """
    num_processes = min(count_processes(), len(tasks))
    if num_processes <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_processes, context, initializer=_begin, initargs=(function, os.getpid())) as pool:
        try:
            yield from pool.map(_call, tasks)
        except BrokenProcessPool:
            raise DataError(
                f"one of {num_processes} worker processes was killed, most likely because the memory is full. Run the same "
                f"command again (it goes on where it was), with fewer processes: {VARIABLE}={max(1, num_processes // 2)}"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    global _inherited
    _inherited = function
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if os.getppid() != parent:
        os._exit(1)


def _call(task: Any) -> Any:
    assert _inherited is not None
    return _inherited(task)
