"""Who works on what: a lock per shard, taken without waiting and given back by the kernel when its holder dies.

So any number of ranks, and captures started twice by mistake, share one list of shards. A claim only saves work: two processes
that captured the same shard would write the same bytes, each under a name of its own until it is renamed into place.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Claim:
    """A lock that this process holds until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def try_claim(file: Path) -> Claim | None:
    """The claim on whatever `file` stands for, or None when somebody else has it, or is about (`sharing`)."""
    descriptor = _open(file)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Claim(descriptor)


@contextmanager
def exclusively(file: Path) -> Iterator[None]:
    """Wait until nobody else is in a block under the same lock."""
    with _locked(file, fcntl.LOCK_EX):
        yield


@contextmanager
def sharing(file: Path) -> Iterator[None]:
    """Be about, with others: as long as anybody is, nobody can claim `file`."""
    with _locked(file, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(file: Path, kind: int) -> Iterator[None]:
    descriptor = _open(file)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
