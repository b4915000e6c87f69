"""A capture that notes every row before it is forwarded, so that rows can be counted after any death; and what is compared.

`folder` of a capture holds its target `cache`, its work folder `.work` and its `notes`.
"""

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from components.artifacts import fingerprint_json
from components.data.training_rows import count_targets
from components.teacher_cache.format import CacheIdentity, CacheManifest, read_manifest
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.shard_plan import CaptureSettings, PlannedShard, plan_capture
from components.teacher_cache.writer import ALONE, Rank, Teacher, write_cache
from tests.conftest import Row, build_identity, build_model

SETTINGS = CaptureSettings(batch_tokens=60, shard_tokens=25)
Tokens = tuple[int, ...]


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """A folder that waits for no disk, where there is one: a killed process leaves there what it leaves anywhere."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 1 << 28:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="survival-"))
    yield folder
    shutil.rmtree(folder)


def identity_of(rows: Sequence[Row], **changes: Any) -> CacheIdentity:
    return replace(build_identity(**changes), data_fingerprint=fingerprint_json([row.fingerprint for row in rows]))


def noting_model(notes: Path, react: Callable[[], Any] = lambda: None) -> Any:
    """The tiny teacher; before every forward pass it notes the rows, and `react` is called."""
    model = build_model()

    def note(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        rows = keywords["input_ids"].tolist()
        if rows == [[0, 1, 2, 3]]:
            return  # the probe of the head, no row
        with notes.open("a") as file:
            file.write("".join(f"{json.dumps([token for token in row if token])}\n" for row in rows))
        react()

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    return model


def capture(
    folder: Path,
    rows: Sequence[Row],
    *,
    react: Callable[[], Any] = lambda: None,
    nap_seconds: float = 0.0,
    rank: Rank = ALONE,
    settings: CaptureSettings = SETTINGS,
    **identity: Any,
) -> CacheManifest | None:
    def slow() -> None:
        react()
        time.sleep(nap_seconds)

    folder.mkdir(parents=True, exist_ok=True)
    return write_cache(
        Teacher(lambda: noting_model(folder / "notes", slow), 50),
        rows,
        identity_of(rows, **identity),
        settings,
        target=folder / "cache",
        work=folder / ".work",
        rank=rank,
    )


def forwarded(folder: Path) -> Counter[Tokens]:
    """How often each row went through the teacher, in all captures into `folder` together."""
    notes = folder / "notes"
    return Counter(tuple(json.loads(line)) for line in notes.read_text().splitlines()) if notes.exists() else Counter()


def rows_twice(folder: Path) -> int:
    counts = forwarded(folder)
    return counts.total() - len(counts)


def planned(rows: Sequence[Row], settings: CaptureSettings = SETTINGS) -> list[PlannedShard]:
    return plan_capture(rows, identity_of(rows), settings).new


def largest_shard(rows: Sequence[Row], settings: CaptureSettings = SETTINGS) -> int:
    """Its number of rows."""
    return max(len(shard.rows) for shard in planned(rows, settings))


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())} if folder.exists() else {}


def left_over(folder: Path) -> list[str]:
    """What is in the work folder beside the lock that stays."""
    return [path.name for path in (folder / ".work").rglob("*") if path.name != "plan.lock"]


def as_bytes(record: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: column.numpy().tobytes() for name, column in record.items()}


def read_all(cache: Path, rows: Sequence[Row]) -> dict[str, dict[str, bytes]]:
    """Every column of every record, read as whoever made the cache would."""
    reader = TeacherCacheReader(cache, read_manifest(cache).identity)
    return {row.fingerprint: as_bytes(reader.read(row.fingerprint, count_targets(row))) for row in rows}
