"""What a data file is: its form by its name, and whether its first bytes agree.

The name says the form (.json: one list of rows; .jsonl: a row per line; .parquet), so that the place of a row means one thing.
Bytes that say otherwise are refused with the repair. Compression alone is told by the bytes, whatever the name says.
"""

import json
import os
import re
from pathlib import Path
from typing import Literal

from components.data.file_kinds import repair_of
from components.data.strict_json import BLANK, kind_of
from components.data.unpacking import SUFFIXES as PACKED_SUFFIXES
from components.data.unpacking import compression_of, unpack
from components.errors import DataError

Form = Literal["lines", "list", "parquet"]
FORMS: dict[str, Form] = {".json": "list", ".jsonl": "lines", ".parquet": "parquet"}
HEAD_BYTES = 1 << 16

_OTHER_BYTES: dict[bytes, str] = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the data itself. Fetch the data: git lfs pull",
    b"PAR1": "Parquet. Name it .parquet",
    b"ARROW1": "an Arrow file. Save it as Parquet: datasets.Dataset.from_file(FILE).to_parquet(NEW)",
    b"PK\x03\x04": "a zip archive. Unpack it: unzip",
    b"BZh": "packed with bzip2. Unpack it: bunzip2 (only gzip and zstd are read as they are)",
    b"\xfd7zXZ": "packed with xz. Unpack it: unxz (only gzip and zstd are read as they are)",
    b"\xff\xfe\0\0": "UTF-32. Convert it: iconv -f utf-32 -t utf-8",
    b"\0\0\xfe\xff": "UTF-32. Convert it: iconv -f utf-32 -t utf-8",
    b"\xff\xfe": "UTF-16. Convert it: iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "UTF-16. Convert it: iconv -f utf-16 -t utf-8",
}
_WEB_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


def form_of_name(file: Path) -> Form:
    stem, suffix = os.path.splitext(file.name)
    if suffix.lower() in PACKED_SUFFIXES:
        stem, suffix = os.path.splitext(stem)
    if (form := FORMS.get(suffix.lower())) is not None:
        return form
    raise DataError(
        f"{file}: its name ends neither in .json (one list of rows) nor .jsonl (a row per line) nor .parquet "
        f"(.gz or .zst may follow). {repair_of(file.name)}"
    )


def plain_file(file: Path, work: Path) -> Path:
    """The file itself, or what was packed in it; a DataError where neither can be a data file of its name's form."""
    form, plain, head = form_of_name(file), file, read_head(file)
    if (compression := compression_of(head)) is not None:
        plain = unpack(file, compression, work)
        head = read_head(plain)
        if compression_of(head) is not None:
            raise DataError(f"{file} is packed twice. Unpack it once: {'gzip' if compression == 'gzip' else 'zstd'} -d")
    _check_head(file, form, head)
    return plain


def read_head(file: Path) -> bytes:
    try:
        _require_file(file)
        with file.open("rb") as handle:
            return handle.read(HEAD_BYTES)
    except PermissionError:
        raise DataError(f"{file} may not be read by this user. Allow it (chmod +r; +x for its folders)") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check that it exists and that its disk is well") from None


def _require_file(file: Path) -> None:
    if file.is_symlink() and not file.exists():
        raise DataError(f"{file} is a link to {os.readlink(file)}, which does not exist. Put the data there, or remove the link")
    if file.is_dir():
        raise DataError(f"{file} is a folder with the name of a file. Name its files, or rename it")
    if file.exists() and not file.is_file():
        raise DataError(f"{file} is neither a file nor a folder (a pipe or a device). Save what it gives as a file")


def refuse_other_bytes(file: Path, head: bytes) -> None:
    """What is no text, or a text that somebody else wrote in place of the data."""
    for magic, what in _OTHER_BYTES.items():
        if head.startswith(magic):
            raise DataError(f"{file} is {what}")
    start = head.lstrip(BLANK)
    if _WEB_PAGE.match(start):
        raise DataError(f"{file} is a web page (often an error or a login page), not data. Download the data again")
    if b"\0" in head[:4096]:
        if head[1:400:2].count(0) > 100 or head[0:400:2].count(0) > 100:
            raise DataError(f"{file} is UTF-16. Convert it: iconv -f utf-16le -t utf-8")
        if "\ufffd" in head[:4096].decode("utf-8", "replace"):
            raise DataError(f"{file} is not a text file. Convert it to .jsonl, or remove it")


def _check_head(file: Path, form: Form, head: bytes) -> None:
    if form == "parquet":
        if not head.startswith(b"PAR1"):
            refuse_other_bytes(file, head)
            raise DataError(f"{file} is not Parquet: it does not begin with PAR1. Get it again, or name it by what it holds")
        return
    refuse_other_bytes(file, head)
    start = head.lstrip(BLANK)
    if not start and len(head) < HEAD_BYTES:
        raise DataError(f"{file} is empty. Remove the file or put data into it")
    if form == "lines":
        _check_lines(file, start)
    elif not start.startswith(b"["):
        _refuse_no_list(file, start)


def _check_lines(file: Path, start: bytes) -> None:
    if b"\n" not in start and re.search(rb"\}\s*\r\s*\{", start):
        raise DataError(f"{file}: its lines end in a carriage return alone. Convert it: tr '\\r' '\\n'")
    first, _, rest = start.partition(b"\n")
    is_whole_list = first.rstrip(BLANK).endswith(b"]") and rest.strip(BLANK)  # then each line is a list: bad rows, one by one
    if start.startswith(b"[") and not is_whole_list:
        raise DataError(f"{file} is one JSON list, not JSON lines. Name it .json, or write one row per line")


def _refuse_no_list(file: Path, start: bytes) -> None:
    lines = start.decode("utf-8", "replace").split("\n", 1)
    try:
        value, end = json.JSONDecoder().raw_decode(lines[0])
    except (ValueError, RecursionError):
        value, end = None, 0
    if isinstance(value, dict) and (lines[0][end:].strip() or (lines[-1].lstrip().startswith("{") and len(lines) > 1)):
        raise DataError(f"{file} is JSON lines, not one list. Name it .jsonl")
    if (under := re.match(rb'\{\s*"([\w-]{1,40})"\s*:\s*\[\s*\{', start)) is not None:
        key = under[1].decode()
        raise DataError(f"{file} must be a list of rows, found an object that holds one. Keep it alone: jq .{key} FILE > NEW")
    if start.startswith(b"{"):
        raise DataError(f"{file} must be a list of rows, found an object. If it is a row, put it into [...]")
    found = kind_of(value) if end else f"no JSON ({start[:20].decode('utf-8', 'replace')!r})"
    raise DataError(f"{file} must be a list of rows, found {found}. Write [ before the first row and ] after the last")
