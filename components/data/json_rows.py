"""Rows of a JSON list or of JSON lines, each with its place.

The elements of a list are decoded one by one, so what is wrong inside a row (a NaN, a repeated key) costs that row and not the
file. A file that cannot be read at all is a DataError.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.data.faults import BadRowError
from components.errors import DataError


def read_rows(file: Path, *, list_key: str | None = None) -> Iterator[tuple[int, Any]]:
    """Line (.jsonl) or number in the list (.json), counted from 1, and value of each row; of a bad row a BadRowError.

    With `list_key` a .json file may also be an object that holds the list under this key.
    """
    data = _read_bytes(file)
    if file.suffix != ".jsonl":
        yield from _read_list(file, _decode_utf8(file, data), list_key)
    elif data.lstrip()[:1] + data.rstrip()[-1:] == b"[]":
        raise DataError(f"{file} is one JSON list, not JSON lines. Name it .json, or write one row per line")
    else:
        yield from ((number, _read_line(line)) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip())


def read_utf8(file: Path) -> str:
    """The text of a file without its byte order mark; a file that is no text is refused."""
    return _decode_utf8(file, _read_bytes(file))


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The text under a key; a BadRowError where there is none that can be written."""
    if key not in row:
        raise BadRowError(f"{key} is missing")
    value = row[key]
    if not isinstance(value, str):
        raise BadRowError(f"{key} must be a text, found {kind_of(value)}")
    if (half := _HALF_CHARACTER.search(value)) is not None:
        raise BadRowError(f"{key} holds half a character ({half[0]!r} at {half.start()}), which no encoding can write")
    return value


def _read_bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file} is UTF-16. Convert it: iconv -f utf-16 -t utf-8")
    if b"\0" in data[:4096] and "\ufffd" in data.decode("utf-8", "replace"):
        raise DataError(f"{file} is not a text file. Unpack it if it is compressed; convert Parquet or Arrow to .jsonl")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DataError(f"{file} is empty. Remove the file or put data into it")
    return data


def _decode_utf8(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}. Convert it: iconv -f <encoding> -t utf-8") from None


def _read_line(line: bytes) -> Any:
    try:
        return _STRICT.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRowError(f"not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return BadRowError(f"not valid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return BadRowError("not usable JSON: nested too deeply")
    except BadRowError as fault:
        return fault


def _read_list(file: Path, text: str, list_key: str | None) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        elements = _list_elements(text) if text.lstrip()[0] == "[" else _list_of_object(_STRICT.decode(text), list_key)
        for number, element in enumerate(elements, start=1):
            yield number, element
    except json.JSONDecodeError as error:
        hint = " The file looks like JSON lines: name it .jsonl" if error.msg == "Extra data" else ""
        place = f"{file}:{error.lineno}:{error.colno}"
        raise DataError(f"{place}: not valid JSON ({error.msg}). Mend the file there.{hint}") from None
    except RecursionError:
        raise DataError(f"{file}: after row {number}: not usable JSON: nested too deeply") from None
    except BadRowError as fault:
        raise DataError(f"{file}: {fault}") from None
    if not number:
        raise DataError(f"{file} is an empty list. Remove the file or put rows into it")


def _list_of_object(value: Any, list_key: str | None) -> list[Any]:
    rows = value.get(list_key) if isinstance(value, dict) and list_key is not None else None
    if isinstance(rows, list):
        return rows
    found = kind_of(value) + (f" without a list {list_key!r}" if list_key else "")
    raise BadRowError(
        f"a .json file must be a list of rows, found {found}. Wrap it in [...], or name it .jsonl if it has a row per line"
    )


def _list_elements(text: str) -> Iterator[Any]:
    """What a JSON list holds, one by one; a JSONDecodeError says where the list itself is broken."""
    place = _skip_blank(text, text.index("[") + 1)
    separator = "," if text[place : place + 1] != "]" else "]"
    while separator == ",":
        try:
            element, place = _STRICT.raw_decode(text, place)
        except BadRowError as fault:
            element, place = fault, _LENIENT.raw_decode(text, place)[1]
        yield element
        place = _skip_blank(text, place)
        separator = text[place : place + 1]
        if separator == ",":
            place = _skip_blank(text, place + 1)
        elif separator != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    place = _skip_blank(text, place + 1)
    if place < len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def _skip_blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    assert found is not None
    return found.end()


def _refuse_constant(name: str) -> None:
    raise BadRowError(f"{name} is not valid JSON")


def _refuse_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadRowError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


def _parse_int(digits: str) -> int:
    if len(digits) > 1000:  # Python itself refuses 4,300 digits, with a ValueError that names no place
        raise BadRowError(f"a number of {len(digits)} digits")
    return int(digits)


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_BLANK = re.compile(r"[ \t\n\r]*")
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_keys, parse_int=_parse_int)
_LENIENT = json.JSONDecoder(parse_constant=str, parse_int=str)
"""Only to find the end of an element that the strict one refuses."""


def kind_of(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__) + (" without entries" if value in ([], {}) else "")
