"""Running out of disk, seen before it happens where possible, and said in bytes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import ArtifactError

MARGIN = 1.2
"""Free space wanted for each byte still to be written: the index, the file system's own needs, other writers."""


def refuse_small_disk(folder: Path, bytes_needed: float) -> None:
    """Refuse to go on when what is left to write does not fit beside a margin."""
    free = free_bytes(folder)
    if free < MARGIN * bytes_needed:
        raise ArtifactError(
            f"the teacher cache needs about {megabytes(MARGIN * bytes_needed)} more under {folder}, which has {megabytes(free)} "
            "free. Make room, or lower teacher_cache.max_entries or raise teacher_cache.tail_mass in params.yaml (python -m "
            "flows.plan_cache shows what each costs), and run the same command again: finished shards are kept"
        )


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Turn 'no space left', 'read-only' and 'not permitted' into errors for people."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(
                f"the disk is full: writing the teacher cache under {folder} failed with {megabytes(free_bytes(folder))} free. "
                "Nothing half written is left; make room and run the same command again: finished shards are kept"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ArtifactError(
                f"the teacher cache cannot be written: {error.filename or folder} is read-only ({error.strerror}). Make it "
                "writable, or work in a clone of your own"
            ) from None
        raise


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
