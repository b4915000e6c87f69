"""The elements of a JSON list in a file of any size: where each begins and ends, through a window that moves along.

The window is read as Latin-1, a character per byte: JSON's own signs are ASCII, so places in it are places in the file, and
bytes that are not UTF-8 cost the row that holds them. An element that the window does not hold to its end makes it grow to
twice its size, so the work stays linear. A very long or deep element is skipped by its brackets and never held.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from components.data.strict_json import AFTER_LIST, BLANK, LENIENT, diagnose
from components.errors import DataError

WINDOW = 1 << 18
_BLANK = re.compile(r"[ \t\r\n]*")
_MARK = re.compile(rb'["\\\[\]{}]')
_NEAR = 32
"""An error so near to the end of the window may be one of the cut alone; no literal or escape is longer."""


@dataclass(frozen=True)
class Element:
    start: int
    stop: int
    raw: bytes | None
    """None: longer than a row may be."""


class Window:
    """Bytes [start, stop) of a file, seen piece by piece."""

    def __init__(self, file: Path, handle: BinaryIO, start: int, stop: int, max_bytes: int) -> None:
        self.file, self.handle, self.stop, self.max_bytes = file, handle, stop, max_bytes
        self.move_to(start)

    def move_to(self, place: int) -> None:
        self.start, self.text, self.place = place, "", 0

    @property
    def is_at_end(self) -> bool:
        return self.start + len(self.text) >= self.stop

    def grow(self) -> None:
        """Forget what lies behind; read as much again as is still held."""
        self.text, self.start, self.place = self.text[self.place :], self.start + self.place, 0
        begin = self.start + len(self.text)
        self.handle.seek(begin)
        data = self.handle.read(min(max(WINDOW, len(self.text)), self.stop - begin))
        if not data:
            self.stop = begin  # the file has become shorter: what is missing is reported like any other end
        self.text += data.decode("latin-1")

    def next_sign(self) -> str:
        """The next character that is no blank, "" at the end."""
        while True:
            found = _BLANK.match(self.text, self.place)
            assert found is not None
            self.place = found.end()
            if self.place < len(self.text) or self.is_at_end:
                return self.text[self.place : self.place + 1]
            self.grow()

    def error(self, reason: str, place: int) -> DataError:
        """A DataError at a place of the window, by line and column of the file."""
        at = self.start + place
        self.handle.seek(max(0, at - 64))
        before, after = self.handle.read(min(at, 64)), self.handle.read(64)
        text = before.decode("utf-8", "replace")
        what = diagnose(text + after.decode("utf-8", "replace"), len(text), reason, "Get the file again, or write it again whole")
        line, column = _line_and_column(self.handle, at)
        return DataError(f"{self.file}:{line}:{column}: not valid JSON: {what}")


def open_list(window: Window) -> None:
    """Move behind the opening bracket."""
    window.handle.seek(0)
    window.move_to(len(head := window.handle.read(1 << 16)) - len(head.lstrip(BLANK)))
    sign = window.next_sign()
    assert sign == "[", "the form of the file has been checked"
    window.place += 1


def close_list(window: Window) -> None:
    """Nothing may follow the closing bracket."""
    assert window.next_sign() == "]"
    window.place += 1
    if window.next_sign():
        raise window.error(AFTER_LIST, window.place)


def elements(window: Window, *, is_whole_list: bool) -> Iterator[Element]:
    """Elements up to the closing bracket, or, of a part of a list, up to the end of the window."""
    sign = window.next_sign()
    if sign == ("]" if is_whole_list else ""):
        return
    while True:
        yield _next_element(window)
        sign = window.next_sign()
        if sign == ("]" if is_whole_list else ""):
            return
        if sign != ",":
            raise window.error("Expecting ',' delimiter", window.place)
        window.place += 1
        window.next_sign()


def _next_element(window: Window) -> Element:
    while True:
        begin = window.place
        try:
            end = LENIENT.raw_decode(window.text, begin)[1]
            if window.is_at_end or not _may_go_on(window.text, end):
                window.place = end
                raw = window.text[begin:end].encode("latin-1") if end - begin <= window.max_bytes else None
                return Element(window.start + begin, window.start + end, raw)
        except json.JSONDecodeError as error:
            is_cut = error.msg.startswith("Unterminated") or error.pos > len(window.text) - _NEAR
            if window.is_at_end or not is_cut:
                raise window.error(error.msg, error.pos) from None
        except RecursionError:
            return _skip_element(window)
        if len(window.text) - begin > window.max_bytes:
            return _skip_element(window)
        window.grow()


def _may_go_on(text: str, end: int) -> bool:
    """Whether what was decoded up to here may be the beginning of a number that the window cuts."""
    return end == len(text) or (text[end] in ".eE" and end > len(text) - _NEAR)


def _skip_element(window: Window) -> Element:
    """The element's end by its brackets; what is in it is read only if it is short enough for a row."""
    start = window.start + window.place
    stop = _end_of_nested(window.handle, start, window.stop)
    if stop is None:
        window.move_to(start)
        raise window.error("Unterminated element", 0)
    raw = None
    if stop - start <= window.max_bytes:
        window.handle.seek(start)
        raw = window.handle.read(stop - start)
    window.move_to(stop)
    return Element(start, stop, raw)


def _end_of_nested(handle: BinaryIO, start: int, limit: int) -> int | None:
    depth, is_text, begin = 0, False, start
    skipped = -1  # the place that a backslash escapes
    while begin < limit:
        handle.seek(begin)
        chunk = handle.read(min(WINDOW, limit - begin))
        for mark in _MARK.finditer(chunk):
            place, sign = begin + mark.start(), mark[0]
            if place == skipped:
                continue
            if sign == b"\\":
                skipped = place + 1
            elif sign == b'"':
                is_text = not is_text
            elif not is_text:
                depth += 1 if sign in b"[{" else -1
            if depth == 0 and not is_text and sign != b"\\":
                return place + 1
        begin += max(1, len(chunk))
    return None


def _line_and_column(handle: BinaryIO, place: int) -> tuple[int, int]:
    handle.seek(0)
    line, begin, read = 1, 0, 0
    while read < place and (chunk := handle.read(min(1 << 22, place - read))):
        if (count := chunk.count(b"\n")) > 0:
            line, begin = line + count, read + chunk.rindex(b"\n") + 1
        read += len(chunk)
    handle.seek(begin)
    before = handle.read(min(place - begin, 1 << 20)).decode("utf-8", "replace")  # editors count characters
    return line, len(before) + max(0, place - begin - (1 << 20)) + 1
