"""Laws of rows read one after the other: the place is the line or the number, and an object may hold the list under a key."""

from pathlib import Path

import pytest

from components.data.faults import BadRowError
from components.data.json_rows import read_rows, read_utf8
from components.errors import DataError


def test_lines_have_their_line_and_elements_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n{"a": NaN}\n[]')
    (tmp_path / "a.json").write_bytes(b'[{"a": 1},\n\n{"a": NaN}, []]')
    for name, places in (("a.jsonl", [1, 3, 4]), ("a.json", [1, 2, 3])):
        rows = list(read_rows(tmp_path / name))
        assert [place for place, _ in rows] == places
        assert rows[0][1] == {"a": 1} and isinstance(rows[1][1], BadRowError) and rows[2][1] == []


def test_an_object_gives_the_list_under_the_key_and_is_refused_without_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"canary": "x", "examples": [{"a": 1}, 7]}')
    assert list(read_rows(tmp_path / "a.json", list_key="examples")) == [(1, {"a": 1}), (2, 7)]
    with pytest.raises(DataError, match="must be a list of rows, found an object without a list 'rows'"):
        list(read_rows(tmp_path / "a.json", list_key="rows"))
    with pytest.raises(DataError, match=r"must be a list of rows, found an object\. If it is a row"):
        list(read_rows(tmp_path / "a.json"))
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}]')
    assert list(read_rows(tmp_path / "a.json", list_key="examples")) == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"caf\xe9", "not UTF-8 at byte 3"),
        (b"\xff\xfea\0", "is UTF-16"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_text_that_is_none_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_utf8(tmp_path / "a.txt")


def test_a_text_comes_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffשלום 😀\r\n".encode())
    assert read_utf8(tmp_path / "a.txt") == "שלום 😀\r\n"
