"""Laws of bad files: one error with the file's name and the repair, as docs/bad-rows.md says; what only looks wrong is read."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from components.data.file_blocks import cut_blocks, read_block
from components.errors import DataError
from tests.components.data.bad_input import ALPACA, FILES, LINE, PAGE, code, error_of, zstd

TABLE = PAGE.read_text(encoding="utf-8").splitlines()
CHAT = {"messages": [{"role": "user", "content": "你好 😀 \u2028 שלום\0"}, {"role": "assistant", "content": "再见\x85"}]}
CHAT_LINE = json.dumps(CHAT, ensure_ascii=False).replace("\0", "\\u0000").encode()
MARK = b"\xef\xbb\xbf"


def read(file: Path) -> list[tuple[int, Any]]:
    return [(row.place, row.value) for block in cut_blocks(file, work=file.parent / "work") for row in read_block(block)]


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_answers_as_the_page_says(name: str, tmp_path: Path) -> None:
    message = error_of(tmp_path, *FILES[name])
    assert f"| {name} | {code(message)} |" in TABLE
    assert message.startswith("inputs/data/a") and message.isprintable()


BOTH = [(1, ALPACA), (2, CHAT)]
READ_ANYWAY: dict[str, tuple[str, bytes, list[tuple[int, Any]]]] = {
    "byte order mark": ("a.jsonl", MARK + LINE + b"\n" + CHAT_LINE, BOTH),
    "two byte order marks": ("a.jsonl", MARK + MARK + LINE + b"\n" + CHAT_LINE, BOTH),
    "joined files": ("a.jsonl", MARK + LINE + b"\n" + MARK + CHAT_LINE, BOTH),
    "byte order mark before a list": ("a.json", MARK + b"[" + LINE + b"," + CHAT_LINE + b"]", BOTH),
    "CRLF": ("a.jsonl", LINE + b"\r\n" + CHAT_LINE + b"\r\n", BOTH),
    "CRLF in a list": ("a.json", b"[\r\n" + LINE + b",\r\n" + CHAT_LINE + b"\r\n]\r\n", BOTH),
    "blank lines": ("a.jsonl", b"\n \r\n" + LINE + b"\n\n\n" + CHAT_LINE + b"\n\n", [(3, ALPACA), (6, CHAT)]),
    "blanks around rows": ("a.jsonl", b" \t" + LINE + b" \r\n\t" + CHAT_LINE, BOTH),
    "gzip": ("a.jsonl.gz", gzip.compress(LINE + b"\n" + CHAT_LINE), BOTH),
    "gzip of two members": ("a.jsonl.gz", gzip.compress(LINE + b"\n") + gzip.compress(CHAT_LINE), BOTH),
    "gzip list": ("a.json.gz", gzip.compress(b"[" + LINE + b"," + CHAT_LINE + b"]"), BOTH),
    "gzip without its name": ("a.jsonl", gzip.compress(LINE + b"\n" + CHAT_LINE), BOTH),
    "zstd": ("a.jsonl.zst", zstd(LINE + b"\n" + CHAT_LINE), BOTH),
    "zstd of two frames": ("a.jsonl.zst", zstd(LINE + b"\n") + zstd(CHAT_LINE), BOTH),
    "zstd named .gz": ("a.jsonl.gz", zstd(LINE + b"\n" + CHAT_LINE), BOTH),
    "plain content named .gz": ("a.jsonl.gz", LINE + b"\n" + CHAT_LINE, BOTH),
    "a name in capitals": ("A.JSONL", LINE + b"\n" + CHAT_LINE, BOTH),
    "lines that are lists": ("a.jsonl", b"[1]\n[2]", [(1, [1]), (2, [2])]),
    "list of lists": ("a.json", b"[[1],[],2, null ]", [(1, [1]), (2, []), (3, 2), (4, None)]),
}


@pytest.mark.parametrize("name", READ_ANYWAY)
def test_what_only_looks_wrong_is_read(name: str, tmp_path: Path) -> None:
    file_name, content, rows = READ_ANYWAY[name]
    (tmp_path / file_name).write_bytes(content)
    assert read(tmp_path / file_name) == rows


def folder(file: Path) -> None:
    file.mkdir()


ODD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "not there": (lambda file: None, "cannot be read: No such file or directory"),
    "folder": (folder, "is a folder with the name of a file. Name its files, or rename it"),
    "link to nothing": (
        lambda file: file.symlink_to("gone.jsonl"),
        r"is a link to gone\.jsonl, which does not exist. Put the data there, or remove the link",
    ),
    "pipe": (os.mkfifo, "is neither a file nor a folder .* Save what it gives as a file"),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ODD_FILES)
def test_what_is_no_file_is_said_to_be_what_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    make, said = ODD_FILES[name]
    make(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=rf"a{suffix} {said}"):
        read(tmp_path / f"a{suffix}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("closed", ["folder/a.jsonl", "folder"])
def test_a_file_that_may_not_be_read_is_named_with_the_command(closed: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_bytes(LINE)
    (tmp_path / closed).chmod(0)
    with pytest.raises(DataError, match=r"a\.jsonl may not be read by this user\. Allow it \(chmod \+r"):
        read(tmp_path / "folder" / "a.jsonl")


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(LINE)
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.txt")
    assert read(tmp_path / "a.jsonl") == [(1, ALPACA)]


def test_a_broken_list_is_named_by_line_and_column_in_characters_however_far_down(tmp_path: Path) -> None:
    rows = b",\n".join([CHAT_LINE] * 20_000)
    (tmp_path / "a.json").write_bytes(b"[" + rows + b",\n" + '{"a": "é", }]'.encode())
    with pytest.raises(DataError, match=r"a\.json:20001:12: not valid JSON: a comma before the closing '}'"):
        read(tmp_path / "a.json")


def test_a_packed_file_that_would_fill_the_disk_is_refused_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.data.unpacking.FREE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * (4 << 20)))
    with pytest.raises(
        DataError, match=r"a\.jsonl\.gz unpacks to more than 1,048,576 bytes \(200 times its size.*unpack it yourself"
    ):
        read(tmp_path / "a.jsonl.gz")
    assert list((tmp_path / "work").iterdir()) == []


def test_a_file_is_unpacked_once_and_again_when_its_content_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(LINE))
    assert read(file) == [(1, ALPACA)]
    [unpacked] = (tmp_path / "work").iterdir()
    with monkeypatch.context() as without:
        without.setattr(pyarrow, "CompressedInputStream", None)
        assert read(file) == [(1, ALPACA)]
    file.write_bytes(gzip.compress(CHAT_LINE))
    assert read(file) == [(1, CHAT)]
    assert len(list((tmp_path / "work").iterdir())) == 2 and unpacked.exists()
