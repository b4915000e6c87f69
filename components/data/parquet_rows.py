"""Rows of a Parquet file: a batch is the most that is held as Python objects, whatever the size of the row groups."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data.faults import BadRowError, FaultKind
from components.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

BATCH_ROWS = 512


def row_groups(file: Path, shown: Path) -> list[tuple[int, int]]:
    """Rows and unpacked bytes of each row group."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in groups]
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _broken(shown, error) from None


def read_table(file: Path, start: int, stop: int) -> Iterator[tuple[Any, bytes]]:
    """Value and text (as JSON) of each row from number `start` to before `stop`, from 0. Of the row group that holds them the
    rows before are decoded, too."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in _batches(opened, start, stop):
                for value in _values(batch):
                    yield value, b"" if isinstance(value, BadRowError) else _text(value)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _broken(file, error) from None


def _batches(opened: "pyarrow.parquet.ParquetFile", start: int, stop: int) -> Iterator["pyarrow.RecordBatch"]:
    first = 0
    for group in range(opened.num_row_groups):
        after = first + opened.metadata.row_group(group).num_rows
        if first < stop and after > start:
            place = first
            for batch in opened.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
                begin, end = max(start - place, 0), min(stop - place, batch.num_rows)
                if begin < end:
                    yield batch.slice(begin, end - begin)
                place += batch.num_rows
                if place >= stop:
                    return
        first = after


def _values(batch: "pyarrow.RecordBatch") -> Iterator[Any]:
    """Rows as dictionaries. Where one cannot become Python objects (bytes that are no UTF-8), the others still can."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for number in range(batch.num_rows):
            yield _value(batch.slice(number, 1))


def _value(row: "pyarrow.RecordBatch") -> Any:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRowError(f"a text is not UTF-8 at byte {error.start} of it. Write the file again from decoded texts")
    except (ValueError, OverflowError) as error:
        return BadRowError(f"a value cannot be read: {error}. Write it as a text, or remove the row", FaultKind.WRONG_TYPE)


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8", "replace")


def _broken(file: Path, error: Exception) -> DataError:
    first = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(".")
    reason = "".join(sign for sign in first if sign.isprintable())
    return DataError(f"{file} is damaged or cut off: it cannot be read as Parquet ({reason}). Get it again")
