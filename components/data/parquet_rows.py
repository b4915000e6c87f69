"""Rows of a Parquet file: a row group is the least that is read at once, a batch the most that is held as Python objects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data.faults import BadRowError, FaultKind
from components.errors import DataError

if TYPE_CHECKING:
    import pyarrow

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


def read_groups(file: Path, start: int, stop: int) -> Iterator[tuple[Any, bytes]]:
    """Value and text (as JSON) of each row of the row groups from `start` to before `stop`."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(BATCH_ROWS, row_groups=range(start, stop), use_threads=False):
                for value in _values(batch):
                    yield value, b"" if isinstance(value, BadRowError) else _text(value)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _broken(file, error) from None


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
