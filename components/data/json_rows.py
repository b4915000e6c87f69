"""Rows of a file one after the other, each with its place: for held-out sets and users' columns, which are small."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.artifacts import WORK
from components.data.faults import BadRowError
from components.data.file_blocks import cut_blocks, read_block
from components.data.file_forms import form_of_name, read_head, refuse_other_bytes
from components.data.strict_json import BLANK, decode_row
from components.errors import DataError

BOM = b"\xef\xbb\xbf"


def read_rows(file: Path, *, list_key: str | None = None) -> Iterator[tuple[int, Any]]:
    """Line (.jsonl) or number in the list (.json), counted from 1, and value of each row; of a bad row a BadRowError.

    With `list_key` a .json file may also be an object that holds the list under this key; it is read whole.
    """
    if list_key is not None and form_of_name(file) == "list" and (rows := _rows_under(file, list_key)) is not None:
        yield from enumerate(rows, start=1)
        return
    for block in cut_blocks(file, work=WORK / "unpacked"):
        yield from ((row.place, row.value) for row in read_block(block))


def read_utf8(file: Path) -> str:
    """The text of a file without its byte order mark; a file that is no text is refused."""
    head = read_head(file)
    refuse_other_bytes(file, head)
    data = file.read_bytes().removeprefix(BOM)
    if not data.strip():
        raise DataError(f"{file} is empty. Remove the file or put data into it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}. Convert it: iconv -f <its encoding> -t utf-8") from None


def _rows_under(file: Path, list_key: str) -> list[Any] | None:
    """The rows of an object that holds them; None where the file is something else, and is judged as such."""
    if not read_head(file).lstrip(BLANK).startswith(b"{"):
        return None
    value = decode_row(data := file.read_bytes())
    if isinstance(value, BadRowError):
        if isinstance(decode_row(data.lstrip(BLANK).partition(b"\n")[0]), dict):
            return None
        raise DataError(f"{file}: {value}")
    rows = value.get(list_key)
    if not isinstance(rows, list):
        raise DataError(
            f"{file} must be a list of rows, found an object without a list {list_key!r}. Put a row into [...], or rename it"
        )
    if not rows:
        raise DataError(f"{file} is an empty list. Remove the file or put rows into it")
    return rows
