"""Laws of blocks: blocks of any size are the file, whoever reads them; memory is a block's; what lies between rows is no row."""

import json
import multiprocessing
import pickle
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.data import list_scanning
from components.data.faults import BadRowError
from components.data.file_blocks import MAX_BLOCKS_PER_GROUP, Block, RawRow, cut_blocks, read_block
from components.errors import DataError
from tests.conftest import end_of_child, start_child

SIZES = [*range(1, 40), 64, 100, 1000, 1 << 22]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
BLANKS = st.text(" \t\r\n", max_size=3)
anew = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(file: Path, target_bytes: int = 1 << 22) -> list[tuple[int, Any, bytes]]:
    blocks = list(cut_blocks(file, work=file.parent / "work", target_bytes=target_bytes))
    return [plain(row) for block in blocks for row in read_block(block)]


def plain(row: RawRow) -> tuple[int, Any, bytes]:
    assert row.num_bytes == len(row.raw)
    return row.place, str(row.value) if isinstance(row.value, BadRowError) else row.value, row.raw


def texts(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@anew
@given(rows=st.lists(st.tuples(JSON_VALUES, BLANKS, BLANKS), min_size=1), window=st.integers(1, 40), target=st.integers(1, 60))
def test_a_list_is_its_elements_for_every_window_and_block(
    rows: list[tuple[Any, str, str]], window: int, target: int, tmp_path: Path
) -> None:
    raws = [texts(value) for value, _, _ in rows]
    body = b",".join(before.encode() + raw + after.encode() for raw, (_, before, after) in zip(raws, rows, strict=True))
    (tmp_path / "a.json").write_bytes(b"\n [" + body + b"]\r\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_scanning, "WINDOW", window)
        found = rows_of(tmp_path / "a.json", target)
    assert [(place, raw) for place, _, raw in found] == list(enumerate(raws, start=1))
    assert [value for _, value, _ in found] == [value for value, _, _ in rows]


@anew
@given(
    lines=st.lists(JSON_VALUES | st.none(), min_size=1), ends=st.sampled_from(["\n", "\r\n", "\n\n"]), target=st.integers(1, 60)
)
def test_lines_are_the_file_for_every_block(lines: list[Any], ends: str, target: int, tmp_path: Path) -> None:
    lines = ["not a list", *lines]
    raws = [texts(value) for value in lines]
    (tmp_path / "a.jsonl").write_bytes(ends.encode().join(raws))
    step = ends.count("\n")
    found = rows_of(tmp_path / "a.jsonl", target)
    assert [(place, raw) for place, _, raw in found] == [(1 + step * number, raw) for number, raw in enumerate(raws)]
    assert [value for _, value, _ in found] == lines


MIXED = [
    b'{"a": "\xf0\x9f\x98\x80 ]}\\" {["}',
    b'{"a": "caf\xe9"}',
    b"7",
    b'{"a": [1, [2, {"b": []}]], "c": NaN}',
    b'"' + b"x" * 90 + b'\\\\"',
    b'{"messages": ' + b"[" * 3000 + b'"]"' + b"]" * 3000 + b"}",
    b"-1.5e10",
    b"{}",
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_blocks_of_any_size_give_the_rows_of_the_file_bad_ones_too(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"[" + b",\n".join(MIXED) + b"]" if suffix == ".json" else b"\n".join(MIXED))
    whole = rows_of(file)
    assert [(place, raw) for place, _, raw in whole] == list(enumerate(MIXED, start=1))
    assert sum(isinstance(value, str) for _, value, _ in whole) == 4  # three faults and a text
    for target_bytes in SIZES:
        assert rows_of(file, target_bytes) == whole
    for window in (1, 2, 3, 7, 50):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(list_scanning, "WINDOW", window)
            assert rows_of(file, 20) == whole


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_blocks_are_disjoint_and_as_large_as_asked_where_rows_are_not_larger(suffix: str, tmp_path: Path) -> None:
    rows = [texts({"a": "b" * (number % 50)}) for number in range(500)]
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"[" + b",".join(rows) + b"]" if suffix == ".json" else b"\n".join(rows))
    blocks = list(cut_blocks(file, work=tmp_path, target_bytes=1000))
    assert all(block.stop - block.start <= 1000 for block in blocks)
    assert all(before.stop <= after.start and before.first_place < after.first_place for before, after in pairwise(blocks))
    assert len(blocks) < 2.5 * file.stat().st_size / 1000


def count_rows(block: Block) -> list[tuple[int, Any, bytes]]:
    return [plain(row) for row in read_block(block)]


def test_blocks_are_read_by_other_processes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(MIXED))
    blocks = list(cut_blocks(tmp_path / "a.jsonl", work=tmp_path, target_bytes=50))
    assert pickle.loads(pickle.dumps(blocks)) == blocks
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert [row for rows in pool.map(count_rows, blocks) for row in rows] == rows_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_memory_is_bounded_by_the_block_and_not_by_the_file(suffix: str, tmp_path: Path) -> None:
    """A file of 80 MB is cut and read within 40 MB more than a small one."""
    row = json.dumps({"instruction": "Name a colour. " * 10, "output": "Blue. " * 20})
    for name, count in (("small", 10), ("large", 280_000)):
        start, between, end = ("[", ",\n", "]") if suffix == ".json" else ("", "\n", "")
        with (tmp_path / f"{name}{suffix}").open("w", encoding="utf-8") as file:
            file.write(start + row)
            file.writelines(between + row for _ in range(count - 1))
            file.write(end)
    assert (tmp_path / f"large{suffix}").stat().st_size > 80e6

    def work() -> None:
        peaks = []
        for name, count in (("small", 10), ("large", 280_000)):
            blocks = cut_blocks(tmp_path / f"{name}{suffix}", work=tmp_path)
            assert sum(1 for block in blocks for _ in read_block(block)) == count
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        assert peaks[1] - peaks[0] < 40_000, peaks

    assert end_of_child(start_child(work)) == 0


def test_parquet_rows_are_those_of_the_table_for_every_block(tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [{"from": "human", "value": f"你好 {number}"}, {"from": "gpt", "value": "b"}],
            "score": number / 2,
            "none": None,
        }
        for number in range(2000)
    ]
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=300)
    for target_bytes in (1, 5000, 1 << 22):
        found = rows_of(file, target_bytes)
        assert [place for place, _, _ in found] == list(range(1, 2001))
        assert [value for _, value, _ in found] == rows
        assert [json.loads(raw) for _, _, raw in found] == rows
    assert len(list(cut_blocks(file, work=tmp_path, target_bytes=1))) == 7 * MAX_BLOCKS_PER_GROUP, "a large group in parts"
    assert len(list(cut_blocks(file, work=tmp_path, target_bytes=1 << 22))) == 1, "small groups together"


def test_a_text_of_parquet_that_is_no_utf8_costs_its_row(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [None, pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])), pyarrow.py_buffer(b"a\xffb")],
    )
    pyarrow.parquet.write_table(pyarrow.table({"prompt": broken, "completion": ["x", "y", "z"]}), tmp_path / "a.parquet")
    first, second, third = rows_of(tmp_path / "a.parquet")
    assert (first[1]["prompt"], third[1]["prompt"], third[0]) == ("a", "b", 3)
    assert second[1].startswith("a text is not UTF-8 at byte 0 of it.")


def test_a_damaged_page_of_parquet_is_an_error_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [f"text {n}" for n in range(500)]}), file, compression="zstd")
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is damaged or cut off: it cannot be read as Parquet \(.*\)\. Get it again"):
        rows_of(file)


@anew
@given(
    name=st.sampled_from(["a.json", "a.jsonl", "a.jsonl.gz", "a.parquet"]),
    pieces=st.lists(
        st.binary(max_size=8) | st.sampled_from([*MIXED, b"[", b"]", b",", b"\n", b"\r", b"\0", b"PAR1", b"\x1f\x8b", b"'"])
    ),
    window=st.integers(1, 40),
    target=st.integers(1, 60),
)
def test_any_bytes_end_in_the_same_rows_or_the_same_error_for_every_window_and_block(
    name: str, pieces: list[bytes], window: int, target: int, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"".join(pieces))
    outcomes = []
    for size, target_bytes in ((1 << 18, 1 << 22), (window, target)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(list_scanning, "WINDOW", size)
            try:
                outcomes.append(repr(rows_of(tmp_path / name, target_bytes)))
            except DataError as error:
                assert str(error).isprintable()
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
