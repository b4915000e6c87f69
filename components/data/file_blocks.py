"""A data file as blocks of whole rows, so that several processes read one file and none holds more than a block of it.

Reading all blocks in order is reading the file. A block is found without decoding its rows (lines), or by where they end
(a list), and is read again by whoever decodes it. Nothing is left out: what cannot be decoded comes as a BadRowError with its
place and its bytes. Blank lines are no rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from components.data.faults import BadRowError
from components.data.file_forms import Form, form_of_name, plain_file
from components.data.list_scanning import Window, close_list, elements, open_list
from components.data.parquet_rows import read_table, row_groups
from components.data.strict_json import BLANK, decode_row
from components.errors import DataError

TARGET_BYTES = 1 << 22
MAX_ROW_BYTES = 1 << 26
MAX_BLOCKS_PER_GROUP = 64
"""Of a Parquet row group, whose first rows are decoded again for every block of it."""
RAW_BYTES = 1 << 16
"""What is kept of a row that is longer than MAX_ROW_BYTES."""


@dataclass(frozen=True)
class Block:
    """Rows of a file: bytes [start, stop) of it, or rows [start, stop) of Parquet. Plain values, for other processes."""

    path: str
    form: Form
    start: int
    stop: int
    first_place: int


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row before its schema is known. `raw` is its text as it stands in the file (of Parquet: as JSON)."""

    place: int
    value: Any
    raw: bytes
    num_bytes: int
    """Of the whole row; more than `raw` holds only where the row is longer than MAX_ROW_BYTES."""


def cut_blocks(file: Path, *, work: Path, target_bytes: int = TARGET_BYTES) -> Iterator[Block]:
    """Blocks of about `target_bytes`, in order; a longer row has a block of its own. A DataError if it is no data file.

    What is packed is unpacked into `work` first. The end of a list is reached last, so a broken one may give blocks before its
    error: use none of them until all have come.
    """
    assert 0 < target_bytes <= MAX_ROW_BYTES
    cutters = {"lines": _cut_lines, "list": _cut_list, "parquet": _cut_parquet}
    form, is_empty = form_of_name(file), True
    for start, stop, first_place in cutters[form](plain := plain_file(file, work), file, target_bytes):
        is_empty = False
        yield Block(str(plain), form, start, stop, first_place)
    if is_empty:
        what = {"lines": "is empty", "list": "is an empty list", "parquet": "has no rows"}[form]
        raise DataError(f"{file} {what}. Remove the file or put rows into it")


def read_block(block: Block) -> Iterator[RawRow]:
    """Every row of the block with its place in the file: line, number in the list, or row of the table, from 1."""
    if block.form == "parquet":
        rows = read_table(Path(block.path), block.start, block.stop)
        yield from (RawRow(place, value, raw, len(raw)) for place, (value, raw) in enumerate(rows, start=block.first_place))
        return
    with open(block.path, "rb") as handle:
        if block.stop - block.start > MAX_ROW_BYTES:
            yield _too_long(handle, block)
        elif block.form == "lines":
            handle.seek(block.start)
            lines = handle.read(block.stop - block.start).split(b"\n")
            for place, line in enumerate(lines, start=block.first_place):
                if raw := line.strip(BLANK):
                    yield RawRow(place, decode_row(raw), raw, len(raw))
        else:
            window = Window(Path(block.path), handle, block.start, block.stop, MAX_ROW_BYTES)
            for place, element in enumerate(elements(window, is_whole_list=False), start=block.first_place):
                assert element.raw is not None, "what is longer than a row may be has a block of its own"
                yield RawRow(place, decode_row(element.raw), element.raw, len(element.raw))


def _too_long(handle: BinaryIO, block: Block) -> RawRow:
    handle.seek(block.start)
    num_bytes = block.stop - block.start
    fault = BadRowError(
        f"the row has {num_bytes:,} bytes, more than the {MAX_ROW_BYTES:,} that one may have. "
        "Divide it, or write the line breaks that it lacks"
    )
    return RawRow(block.first_place, fault, handle.read(RAW_BYTES), num_bytes)


Cut = Iterator[tuple[int, int, int]]


def _cut_lines(file: Path, shown: Path, target_bytes: int) -> Cut:
    start, place = 0, 1
    with file.open("rb") as handle:
        while chunk := handle.read(target_bytes):
            end = chunk.rfind(b"\n") + 1 if len(chunk) == target_bytes else len(chunk)
            has_rows, num_lines = bool(chunk[:end].strip(BLANK)), chunk.count(b"\n", 0, end)
            if not end:  # one line, longer than the target
                (length, has_rows), num_lines = _rest_of_line(handle), 1
                end, has_rows = target_bytes + length, has_rows or bool(chunk.strip(BLANK))
            if has_rows:
                yield start, start + end, place
            start, place = start + end, place + num_lines
            handle.seek(start)


def _rest_of_line(handle: BinaryIO) -> tuple[int, bool]:
    """Number of bytes up to and with the next line end, and whether they are more than blank."""
    length, has_rows = 0, False
    while chunk := handle.readline(TARGET_BYTES):
        length, has_rows = length + len(chunk), has_rows or bool(chunk.strip(BLANK))
        if chunk.endswith(b"\n"):
            break
    return length, has_rows


def _cut_list(file: Path, shown: Path, target_bytes: int) -> Cut:
    with file.open("rb") as handle:
        window = Window(shown, handle, 0, file.stat().st_size, MAX_ROW_BYTES)
        open_list(window)
        start, stop, first, place = 0, 0, 1, 0
        for place, element in enumerate(elements(window, is_whole_list=True), start=1):
            if place > first and element.stop - start > target_bytes:
                yield start, stop, first
                first = place
            start, stop = element.start if place == first else start, element.stop
        if place:
            yield start, stop, first
        close_list(window)


def _cut_parquet(file: Path, shown: Path, target_bytes: int) -> Cut:
    """Small row groups together, a large one in parts."""
    start, stop, held = 0, 0, 0
    for num_rows, num_bytes in row_groups(file, shown):
        if stop > start and held + num_bytes > target_bytes:
            yield start, stop, start + 1
            start, held = stop, 0
        stop, held = stop + num_rows, held + num_bytes
        num_blocks = min(num_rows, held // target_bytes, MAX_BLOCKS_PER_GROUP)
        if num_blocks > 1:
            edges = [start + (stop - start) * block // num_blocks for block in range(num_blocks + 1)]
            yield from ((first, after, first + 1) for first, after in pairwise(edges))
            start, held = stop, 0
    if stop > start:
        yield start, stop, start + 1
