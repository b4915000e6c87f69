"""One pipeline at a time on one checkout, and the stages that it has sent to workers of the same disk.

A pipeline, or a stage that somebody starts alone, takes the lock of .work/pipeline.lock for itself and writes down who it is. The
stages of a pipeline share its lock, in whatever process they run, and keep it for as long as their last process lives: so
nobody else can begin while a stage of a pipeline that was killed is still at work.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import BallastError

LOCK = Path(".work/pipeline.lock")
MAX_NOTE_BYTES = 128


@contextmanager
def hold_lock(root: Path, run_id: str = "") -> Iterator[int]:
    """For a pipeline (`run_id`: its flow run). Yields the descriptor, for children to keep open; refuses where it is held."""
    with _opened(root) as descriptor:
        _lock(descriptor, fcntl.LOCK_EX, root)
        note = f"{os.getpid()} {run_id}".strip()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note.encode(), 0)
        _lock(descriptor, fcntl.LOCK_SH, root)  # not atomic: somebody may have come in between, and has signed then
        if _read_note(descriptor) != note:
            raise BallastError(describe_holder(_read_note(descriptor), root))
        yield descriptor


@contextmanager
def share_lock(root: Path, run_id: str) -> Iterator[int]:
    """For a stage that the pipeline with that flow run has sent here; refuses where that pipeline does not hold the lock."""
    with _opened(root) as descriptor:
        _lock(descriptor, fcntl.LOCK_SH, root)
        holder = _read_note(descriptor)
        if holder.partition(" ")[2] != run_id:
            raise BallastError(
                f"the pipeline that has sent this stage (flow run {run_id}) does not run in {root}. A worker in another checkout "
                "needs a pool with disk: remote under routing.pools in params.yaml; a pipeline that has ended needs nothing more"
            )
        yield descriptor


def describe_holder(note: str, root: Path) -> str:
    pid, _, run_id = note.partition(" ")
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return (
            f"a stage of a pipeline that was killed (pid {pid or 'unknown'}) is still at work in {root}; wait for its end, or "
            "cancel its flow run"
        )
    except PermissionError:
        pass
    name = f"pid {pid}, flow run {run_id}" if run_id else f"pid {pid}"
    return f"another pipeline ({name}) is running in {root}; wait for its end, or end it with: kill {pid}"


@contextmanager
def _opened(root: Path) -> Iterator[int]:
    (root / LOCK).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BallastError(describe_holder(_read_note(descriptor), root)) from None


def _read_note(descriptor: int) -> str:
    return os.pread(descriptor, MAX_NOTE_BYTES, 0).decode()
