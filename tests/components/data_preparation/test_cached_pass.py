"""Laws of a pass: any number of processes and batches give the same rows, and what is there already is not made again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.data_preparation import cached_pass
from components.data_preparation.cached_pass import Chunk, Pass, forget_others, run_pass
from components.data_preparation.workers import VARIABLE

ROOT = Path(__file__).resolve().parents[3]
SQUARES = pa.schema([("square", pa.int64()), ("digits", pa.list_(pa.int32()))])
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests/components/data_preparation")
import test_cached_pass as cases
from components.data_preparation.cached_pass import run_pass

folder = Path(sys.argv[1])
chunks = cases.chunks_in(folder, 6)

def work(rows):
    if rows.column("number")[0].as_py() == 3000:
        os.kill(os.getpid(), signal.SIGKILL)
    return cases.square(rows)

run_pass(cases.step(work), chunks, folder / "made")
"""


def square(rows: pa.Table) -> pa.Table:
    numbers = rows.column("number").to_pylist()
    return pa.table({"square": [n * n for n in numbers], "digits": [[int(d) for d in str(n)] for n in numbers]}, schema=SQUARES)


def step(function: Callable[[pa.Table], pa.Table] = square, **changes: object) -> Pass:
    settings, batch_size = str(changes.get("settings", "s")), int(str(changes.get("batch_size", 100)))
    return Pass("square", function, SQUARES, settings, batch_size=batch_size)


def chunks_in(folder: Path, num_chunks: int) -> list[Chunk]:
    """1,000 numbers in each, as a pass leaves them."""
    numbers = Pass("number", lambda rows: number_rows(rows), pa.schema([("number", pa.int64())]), "n", batch_size=1)
    blocks = [Chunk(f"block {index}", blocks={"index": [index]}) for index in range(num_chunks)]
    files = run_pass(numbers, blocks, folder / "numbers")
    return [Chunk(f"numbers {index}", file) for index, file in enumerate(files)]


def number_rows(blocks: pa.Table) -> pa.Table:
    (index,) = blocks.column("index").to_pylist()
    return pa.table({"number": list(range(1000 * index, 1000 * index + 1000))})


def read(files: list[Path]) -> list[int]:
    return [number for file in files for number in Chunk("x", file).open()["square"]]


@pytest.mark.parametrize(("num_processes", "batch_size"), [("1", 1), ("1", 10_000), ("2", 333)])
def test_every_row_once_and_in_order(
    num_processes: str, batch_size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, num_processes)
    files = run_pass(step(batch_size=batch_size), chunks_in(tmp_path, 3), tmp_path / "made")
    assert read(files) == [n * n for n in range(3000)]


def test_what_is_there_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    chunks = chunks_in(tmp_path, 3)
    first = run_pass(step(), chunks[:2], tmp_path / "made")
    asked: list[int] = []

    def noting(rows: pa.Table) -> pa.Table:
        asked.append(rows.num_rows)
        return square(rows)

    again = run_pass(step(noting, batch_size=1000), chunks, tmp_path / "made")
    assert again[:2] == first
    assert asked == [1000]
    run_pass(step(noting, settings="others", batch_size=1000), chunks, tmp_path / "made")
    assert asked == [1000] * 4


def test_other_code_makes_everything_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path, 1)
    (first,) = run_pass(step(), chunks, tmp_path / "made")
    monkeypatch.setattr(cached_pass, "_code_key", lambda: "other code")
    assert run_pass(step(), chunks, tmp_path / "made") != [first]


def test_some_rows_of_a_chunk_have_a_result_of_their_own(tmp_path: Path) -> None:
    (chunk,) = chunks_in(tmp_path, 1)
    taken = Chunk(chunk.key, chunk.file, indices=np.array([5, 7, 999]))
    files = run_pass(step(), [chunk, taken], tmp_path / "made")
    assert read(files[1:]) == [25, 49, 999 * 999]
    assert files[0] != files[1]


def test_a_killed_pass_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environ = {**os.environ, VARIABLE: "1"}
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=environ, check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "made").glob("*.arrow"))) == 3
    asked: list[int] = []

    def noting(rows: pa.Table) -> pa.Table:
        asked.append(rows.column("number")[0].as_py())
        return square(rows)

    monkeypatch.setenv(VARIABLE, "1")
    files = run_pass(step(noting, batch_size=1000), chunks_in(tmp_path, 6), tmp_path / "made")
    assert asked == [3000, 4000, 5000]
    assert read(files) == [n * n for n in range(6000)]


def test_what_no_run_uses_is_removed(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path, 2)
    old = run_pass(step(settings="old"), chunks, tmp_path / "made")
    new = run_pass(step(), chunks, tmp_path / "made")
    (tmp_path / "made" / "something else").touch()
    (tmp_path / "made" / "tmp8f3k").touch()  # what `datasets` leaves of a pass that was killed
    forget_others(tmp_path / "made", new)
    assert not any(file.exists() for file in old)
    assert all(file.exists() for file in new)
    assert (tmp_path / "made" / "something else").exists()
    assert not (tmp_path / "made" / "tmp8f3k").exists()
