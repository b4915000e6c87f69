"""Laws of memory: a capture and a reader of twenty times the rows need no more of it, and opening touches no shard's body."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.data.training_rows import count_targets
from components.teacher_cache import recent_records
from components.teacher_cache.format import read_manifest
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.shard_plan import CaptureSettings
from tests.components.teacher_cache.conftest import capture, identity_of
from tests.conftest import Row, end_of_child, start_child

FEW, TIMES = 100, 20
LENGTH = 60
SETTINGS = CaptureSettings(batch_tokens=600, shard_tokens=3000)
BYTES_A_ROW = 1200
"""Of a capture's plan and a reader's requests, which are Python objects; a record of this test takes 9,000 on the disk."""
NOISE_BYTES = 3e6


def build_long_rows(num_rows: int) -> list[Row]:
    draw = random.Random(14)
    return [Row([draw.randrange(1, 50) for _ in range(LENGTH)], [False] + [True] * (LENGTH - 1)) for _ in range(num_rows)]


def memory(kind: str) -> int:
    """Bytes of this process: `VmHWM` (most so far), `RssAnon` (its own, without what is mapped from files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def measured(folder: Path, work: Callable[[], Any]) -> dict[str, Any]:
    """What `work` returns in a child that has warmed up."""
    file = folder / "measured.json"

    def child() -> None:
        file.write_text(json.dumps(work()))

    assert end_of_child(start_child(child)) == 0
    return dict(json.loads(file.read_text()))


def peak_of_capture(folder: Path, num_rows: int) -> dict[str, Any]:
    rows = build_long_rows(num_rows)

    def work() -> dict[str, int]:
        capture(folder / "warm", rows[:FEW], settings=SETTINGS, max_entries=48)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
        before = memory("VmHWM")
        capture(folder, rows, settings=SETTINGS, max_entries=48)
        return {"before": before, "peak": memory("VmHWM")}

    folder.mkdir()
    return measured(folder, work)


def peak_of_reading(folder: Path, num_rows: int) -> dict[str, Any]:
    """All records one after the other; the most memory of its own at any of them."""
    rows = build_long_rows(num_rows)

    def work() -> dict[str, int]:
        recent_records.BUDGET_BYTES = 1 << 20  # what is remembered is bounded, and with so little it does not hide the rest
        peaks = []
        for part in (rows[:FEW], rows):
            start = memory("RssAnon")
            reader = TeacherCacheReader(folder / "cache", read_manifest(folder / "cache").identity)
            peak = 0
            for row in part:
                reader.read(row.fingerprint, count_targets(row))
                peak = max(peak, memory("RssAnon"))
            peaks.append((start, peak))
        return {"before": peaks[1][0], "peak": peaks[1][1]}

    return measured(folder, work)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is read from /proc")
    folder = tmp_path_factory.mktemp("memory")
    folders = {num_rows: folder / str(num_rows) for num_rows in (FEW, TIMES * FEW)}
    captures = [peak_of_capture(own, num_rows) for num_rows, own in folders.items()]
    return {
        "capture": captures,
        "read": [peak_of_reading(own, num_rows) for num_rows, own in folders.items()],
        "folder": [folders],
    }


@pytest.mark.parametrize("kind", ["capture", "read"])
def test_twenty_times_the_rows_need_hardly_more_memory(peaks: dict[str, Any], kind: str) -> None:
    (folders,) = peaks["folder"]
    sizes = [sum(file.stat().st_size for file in (own / "cache").iterdir()) for own in folders.values()]
    few, many = peaks[kind]
    grown = (many["peak"] - many["before"]) - (few["peak"] - few["before"])
    allowed = BYTES_A_ROW * FEW * (TIMES - 1) + NOISE_BYTES
    print(f"{kind}: cache {sizes} bytes, peaks {few['peak']:,} and {many['peak']:,}, grown by {grown:,}, allowed {allowed:,.0f}")
    assert sizes[1] - sizes[0] > 2 * allowed, "or the test could not tell"
    assert grown < allowed
    assert many["peak"] < 1.1 * few["peak"]


def test_opening_reads_no_byte_of_a_shards_body(ram: Path) -> None:
    """Shards whose bodies are holes of the right size open as well as whole ones, and none of their records is handed out."""
    rows = build_long_rows(60)
    capture(ram, rows, settings=CaptureSettings(600, 100))
    manifest = read_manifest(ram / "cache")
    assert len(manifest.shards) > 25
    for entry in manifest.shards:
        file = ram / "cache" / entry.name
        header = file.read_bytes()[: entry.header_bytes]
        with file.open("wb") as opened:
            opened.write(header)
            opened.truncate(entry.num_bytes)
    start = time.perf_counter()
    reader = TeacherCacheReader(ram / "cache", identity_of(rows))
    print(f"opening {len(manifest.shards)} shards: {1e3 * (time.perf_counter() - start):.1f} ms")
    refused = 0
    for row in rows:
        try:
            reader.read(row.fingerprint, count_targets(row))
        except Exception as error:
            refused += "is damaged in record" in str(error)
    assert refused == len(rows)
