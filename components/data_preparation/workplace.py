"""The folder where the passes keep their results: one preparation at a time, and a full disk is said as such."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import DataError


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Hold the folder until everything made of it is written: a run removes what it does not use itself."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another prepare_data, which works in {work}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DataError(f"the disk of {work} is full. Make room and run the same command: it goes on where it was") from None
