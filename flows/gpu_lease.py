"""One stage per GPU: which GPUs of this machine a stage may use, however many pipelines and workers share it.

A lease is a lock on a file per GPU. The stage's processes inherit it, so a GPU is free again when the last of them is gone, not
when whoever started them is; nothing has to be cleaned up after a crash.
"""

import fcntl
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from components.errors import BallastError
from flows.child_process import StoppedError

POLL_SECONDS = 1.0
QUERY_LIMIT_SECONDS = 20.0


class Lease(NamedTuple):
    environ: dict[str, str]  # for the stage
    held_files: tuple[int, ...]  # descriptors that its processes keep open


@contextmanager
def hold_gpus(num_gpus: int, on_line: Callable[[str], None], stopping: threading.Event | None = None) -> Iterator[Lease]:
    """That many GPUs for one stage alone; waits while others have them. On a machine without GPUs: an empty lease, at once."""
    known = visible_gpus() if num_gpus else []
    if not known:
        yield Lease({}, ())
        return
    if num_gpus > len(known):
        raise BallastError(
            f"the stage wants {num_gpus} GPUs, this machine shows {len(known)}: lower launch.num_processes in params.yaml"
        )
    is_told = False
    while True:
        with ExitStack() as files:
            taken = _take(known, num_gpus, files)
            if len(taken) == num_gpus:
                yield Lease({"CUDA_VISIBLE_DEVICES": ",".join(taken)}, tuple(taken.values()))
                return
        if not is_told:
            on_line(f"waiting for {num_gpus} of {len(known)} GPUs: other stages have them")
        is_told = True
        if stopping is not None and stopping.is_set():
            raise StoppedError
        time.sleep(POLL_SECONDS)


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, otherwise the UUIDs that nvidia-smi tells; neither needs torch or a CUDA context."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_LIMIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.startswith("GPU-")]


def _take(known: list[str], num_gpus: int, files: ExitStack) -> dict[str, int]:
    """Descriptors of free GPUs, at most `num_gpus`; closed with `files`, and so given back where they are too few."""
    folder = Path(tempfile.gettempdir()) / f"ballast-{os.getuid()}" / "gpus"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    taken: dict[str, int] = {}
    for name in known:
        if len(taken) == num_gpus:
            break
        descriptor = os.open(folder / name.replace("/", "-"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        files.callback(os.close, descriptor)
        taken[name] = descriptor
    return taken
