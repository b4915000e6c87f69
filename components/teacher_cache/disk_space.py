"""Running out of disk, seen before it happens where possible, and said in bytes."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

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
    except (OSError, SafetensorError) as error:
        number, reason = _number_of(error), os.strerror(_number_of(error))
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(
                f"the disk is full: writing the teacher cache under {folder} failed ({reason}) with "
                f"{megabytes(free_bytes(folder))} free. Nothing half written is left; make room and run the same command again: "
                "finished shards are kept"
            ) from None
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            place = getattr(error, "filename", None) or folder
            raise ArtifactError(
                f"the teacher cache cannot be written: {place} is read-only ({reason}). Make it writable, or work in a clone of "
                "your own"
            ) from None
        raise


def _number_of(error: OSError | SafetensorError) -> int:
    """Why a write failed; safetensors says it in words: `... (os error 28)`."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0


def refuse_unreachable(target: Path, work: Path) -> None:
    """Refuse at once what would fail at the very end: `target` cannot be exchanged for a folder under `work`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = errno.EBUSY if os.path.ismount(target) else 0 if os.access(target.parent, os.W_OK) else errno.EACCES
    try:
        os.rename(work / ".nothing", target.parent / ".nothing")  # what is wrong with the place is told before what is not there
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = error.errno or 0
    if reason in (errno.EXDEV, errno.EBUSY):
        raise ArtifactError(
            f"the teacher cache cannot be put at {target}: it must be on the same disk as {work}, and no mount of its own "
            f"({os.strerror(reason)}). Mount the folder that holds both"
        )
    if reason:
        raise OSError(reason, os.strerror(reason), str(target.parent))


def free_bytes(folder: Path) -> int:
    """Of the disk that `folder` is on, or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes:,.0f} bytes"
