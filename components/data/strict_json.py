"""One row of JSON from its bytes, as the standard has it (no NaN, no repeated key), and what is wrong with it otherwise.

A fault says what was found and what to do about it, for it is read by whoever has to mend the file.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from components.data.faults import BadRowError, FaultKind

BLANK = b" \t\r\n\xef\xbb\xbf"
"""Bytes that may stand around rows: JSON's blanks, and byte order marks, which joined files have in their middle."""
MAX_DIGITS = 1000
"""Python itself refuses 4,300 digits, with an error that names no place."""

AFTER_LIST = "Expecting the end of the file"


def decode_row(raw: bytes) -> Any:
    """The value of one row, or the BadRowError that says why it has none (returned: a bad row is no reason to stop)."""
    try:
        return STRICT.decode((raw.lstrip(BLANK) if raw[:1] == b"\xef" else raw).decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRowError(
            f"not UTF-8 at byte {error.start} of the row. Convert it from its own encoding to UTF-8 (iconv), or remove the row"
        )
    except json.JSONDecodeError as error:
        what = diagnose(error.doc, error.pos, error.msg, "Write it whole, on one line")
        return BadRowError(f"not valid JSON at column {error.colno}: {what}")
    except RecursionError:
        return BadRowError("nested too deeply to be read. Instruction data needs a few levels: remove the row")
    except BadRowError as fault:
        return fault


def diagnose(text: str, place: int, reason: str, mend_end: str) -> str:
    """What stands at `place` of the text, where a JSON decoder stopped for `reason`, and what to do about it."""
    before, rest = text[max(0, place - 40) : place].rstrip()[-1:], text[place : place + 24]
    found = repr(rest[:12])
    if reason.startswith("Unterminated string") or not rest.strip():
        return f"it ends in the middle. {mend_end}"
    if rest.startswith(("//", "/*", "#")):
        return f"a comment ({found}), which JSON has not. Remove it"
    if reason == "Extra data":
        return f"more stands after the end of the row ({found}). Put every row on a line of its own"
    if reason == AFTER_LIST:
        return f"more stands after the end of the list ({found}). Remove it, or make one list of the two"
    if reason.startswith("Invalid control character"):
        return f"the raw control character U+{ord(rest[0]):04X} in a text. Write it as \\u{ord(rest[0]):04x}, or remove it"
    if reason.startswith("Invalid \\u"):
        return f"an escape \\u without its four hexadecimal digits ({found}). Write four, or double the backslash"
    if reason.startswith("Invalid \\"):
        return f"a backslash that begins no JSON escape ({found}). Double it: \\\\"
    if before == "," and rest[0] in "]}":
        return f"a comma before the closing {rest[0]!r}. Remove the comma"
    return _diagnose_word(rest, reason, found)


def _diagnose_word(rest: str, reason: str, found: str) -> str:
    if rest[0] == "'":
        return "single quotes. JSON has double quotes: write a Python dict with json.dumps, not with print or str"
    if (word := re.match(r"True\b|False\b|None\b", rest)) is not None:
        wanted = {"True": "true", "False": "false", "None": "null"}[word[0]]
        return f"Python's {word[0]}, which JSON writes {wanted}. Write the row with json.dumps"
    if reason == "Expecting ',' delimiter":
        return f'a comma or a closing bracket must stand before {found}. Add it, or escape a double quote within a text: \\"'
    return f"{_WANTED.get(reason, reason)} must stand before {found}. Add it, or remove the row"


_WANTED = {
    "Expecting value": "a value",
    "Expecting property name enclosed in double quotes": "a key in double quotes",
    "Expecting ':' delimiter": "a colon",
}


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The text under a key; a BadRowError where there is none that can be written."""
    if key not in row:
        raise BadRowError(f"{key} is missing. Add it, or remove the row", FaultKind.MISSING)
    value = row[key]
    if not isinstance(value, str):
        raise BadRowError(f"{key} must be a text, found {kind_of(value)}. Write a text, or remove the row", FaultKind.WRONG_TYPE)
    if not value.isascii() and (half := _HALF_CHARACTER.search(value)) is not None:
        raise BadRowError(
            f"{key} holds half a character ({half[0]!r} at {half.start()}), which no encoding can write. "
            "Remove it, or write both halves of the pair"
        )
    return value


def kind_of(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__) + (" without entries" if value in ([], {}) else "")


_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    Decimal: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    bytes: "binary data",
    date: "a date",
}
"""The last ones come from Parquet only; a time keeps the name of its type."""


def _refuse_constant(name: str) -> None:
    raise BadRowError(f"{name} is not valid JSON. Write null, or remove the key")


def _refuse_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise BadRowError(f"the key {twice[:40]!r} occurs twice, and only one can be meant. Remove the other")
    return row


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadRowError(f"a number of {len(digits)} digits, more than {MAX_DIGITS}. Write it as a text, or remove it")
    return int(digits)


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_keys, parse_int=_parse_int)
LENIENT = json.JSONDecoder(parse_constant=str, parse_int=str, strict=False)
"""Only to find where a value ends, also one that the strict decoder refuses."""
