"""Rows and files that are wrong, each under the name that docs/bad-rows.md gives it.

That page holds what Ballast answers, and test_bad_rows.py and test_bad_files.py hold it against the code. After a new entry or
a changed message, write its tables anew, and read them before you commit them:

    python -m tests.components.data.bad_input
"""

import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from components.data.faults import BadRowError
from components.data.file_blocks import cut_blocks, read_block
from components.data.schemas import parse_rows
from components.data.strict_json import decode_row
from components.errors import DataError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "bad-rows.md"
LONGEST_EXAMPLE = 90
HEADS = {"rows": "| kind | what | example | Ballast says |", "files": "| what | Ballast says |"}
ALPACA = {"instruction": "Name a colour.", "output": "Blue."}
USER = {"role": "user", "content": "Hi"}
LINE = json.dumps(ALPACA).encode()
TABLE = pyarrow.table({key: [value] * 50 for key, value in ALPACA.items()})


def json_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def sharegpt(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


def chat(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(turns)}


def parquet(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


ROWS: dict[str, str | bytes] = {
    # bytes and JSON
    "cut off within a text": '{"instruction": "a", "out',
    "cut off between texts": '{"instruction": "a", "output": "b"',
    "a row over several lines": "{",
    "comma before the closing brace": '{"instruction": "a", "output": "b",}',
    "comma before the closing bracket": '{"messages": ["a",]}',
    "single quotes": "{'instruction': 'a', 'output': 'b'}",
    "single quotes around a text": '{"instruction": \'a\', "output": "b"}',
    "comment behind the row": '{"instruction": "a", "output": "b"} // good',
    "comment within the row": '{"instruction": "a", # why\t"output": "b"}',
    "Python's None": '{"instruction": "a", "input": None, "output": "b"}',
    "Python's True": '{"instruction": "a", "output": "b", "good": True}',
    "two objects on a line": '{"instruction": "a", "output": "b"} {"instruction": "c", "output": "d"}',
    "two objects with a comma": '{"instruction": "a", "output": "b"},',
    "a key without quotes": '{instruction: "a", "output": "b"}',
    "a colon is missing": '{"instruction" "a", "output": "b"}',
    "a double quote not escaped": '{"instruction": "say "hi"", "output": "b"}',
    "words that are no JSON": "instruction: a",
    "a backslash alone": r'{"instruction": "C:\data", "output": "b"}',
    "half an escape": r'{"instruction": "\u12", "output": "b"}',
    "raw tab in a text": '{"instruction": "a\tb", "output": "c"}',
    "NUL byte": '{"instruction": "a\0", "output": "c"}',
    "escape sequence of a terminal": '{"instruction": "\x1b[1m", "output": "c"}',
    "NaN": '{"instruction": "a", "output": NaN}',
    "Infinity": '{"instruction": "a", "output": "b", "score": -Infinity}',
    "a number of 5,000 digits": '{"instruction": "a", "output": "b", "id": ' + "9" * 5000 + "}",
    "nested 100,000 deep": '{"messages": ' + "[" * 100000 + "]" * 100000 + "}",
    "a key twice": '{"instruction": "a", "output": "b", "output": "c"}',
    "a key twice, deeper": '{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}',
    "Latin-1 in a UTF-8 file": b'{"instruction": "caf\xe9", "output": "b"}',
    "UTF-8 cut within a character": '{"instruction": "é'.encode()[:-1],
    "surrogates encoded as UTF-8": b'{"instruction": "\xed\xa0\xbd", "output": "b"}',
    "half a character": r'{"instruction": "a", "output": "x\ud83d"}',
    # no object
    "null": "null",
    "a number": "7",
    "a text": '"hello"',
    "a truth value": "true",
    "a list": '["a", "b"]',
    "an empty list": "[]",
    # schema
    "an empty object": "{}",
    "keys of no schema": json_of({"text": "a", "label": 3}),
    "half a schema": json_of({"instruction": "a"}),
    "keys in another case": json_of({"Instruction": "a", "Output": "b"}),
    "prompt with rejected and chosen": json_of({"prompt": "a", "chosen": "b", "rejected": "c"}),
    # types
    "null for a text": json_of({**ALPACA, "output": None}),
    "a number for a text": json_of({**ALPACA, "output": 3}),
    "a list for a text": json_of({**ALPACA, "output": ["a"]}),
    "an object for a text": json_of({**ALPACA, "output": {}}),
    "a truth value for an input": json_of({**ALPACA, "input": False}),
    "a list for a system": json_of({**ALPACA, "system": ["a"]}),
    "history of objects": json_of({**ALPACA, "history": [{"a": "b"}]}),
    "history that is a text": json_of({**ALPACA, "history": "a"}),
    "null in history": json_of({**ALPACA, "history": [["a", None]]}),
    "turns are a text": json_of({"messages": "Hi"}),
    "turns are null": json_of({"conversations": None}),
    "a turn is a text": json_of({"messages": ["Hi"]}),
    "turns nested twice": json_of({"messages": [[USER]]}),
    "a turn says null": json_of(sharegpt(("human", "a"), ("gpt", None))),
    "a turn says a number": json_of(sharegpt(("human", "a"), ("gpt", 3))),
    "an image among the parts": json_of(chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]})),
    "parts that are texts": json_of(chat({"role": "user", "content": ["a"]})),
    "a part with null": json_of(chat({"role": "user", "content": [{"type": "text", "text": None}]})),
    "prompt as turns, completion as text": json_of({"prompt": [USER], "completion": "a"}),
    "instances are an object": json_of({"instruction": "a", "instances": {"input": "b"}}),
    "an instance is a text": json_of({"instruction": "a", "instances": ["b"]}),
    # missing
    "a turn without text": json_of(chat({"role": "user"})),
    "a turn without role": json_of(chat({"content": "a"})),
    "a role of null": json_of(chat({"role": None, "content": "a"})),
    "a role that is a list": json_of(sharegpt((["human"], "a"))),
    "a tool call without text": json_of(chat(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]})),
    "an instance without output": json_of({"instruction": "a", "instances": [{"input": "b"}]}),
    # empty
    "an empty output": json_of({**ALPACA, "output": ""}),
    "a blank instruction": json_of({**ALPACA, "instruction": " \n "}),
    "an empty question": json_of({"question": "", "answer": "#### 1"}),
    "an empty completion": json_of({"prompt": "a", "completion": " "}),
    "an empty turn": json_of(sharegpt(("human", "a"), ("gpt", ""))),
    "an empty system turn": json_of(sharegpt(("system", ""), ("human", "a"), ("gpt", "b"))),
    "empty parts": json_of(chat({"role": "user", "content": []})),
    "no turns": json_of({"conversations": []}),
    "no instances": json_of({"instruction": "a", "instances": []}),
    # roles
    "an unknown role": json_of(sharegpt(("human", "a"), ("narrator", "b"))),
    "a tool's turn": json_of(chat(USER, {"role": "tool", "content": "3"})),
    "a function's turn": json_of(chat(USER, {"role": "function", "content": "3"})),
    # order
    "the assistant first": json_of(sharegpt(("gpt", "a"), ("human", "b"), ("gpt", "c"))),
    "the user twice": json_of(sharegpt(("human", "a"), ("human", "b"), ("gpt", "c"))),
    "the assistant twice": json_of(sharegpt(("human", "a"), ("gpt", "b"), ("gpt", "c"))),
    "the user last": json_of(sharegpt(("human", "a"), ("gpt", "b"), ("human", "c"))),
    "a question alone": json_of(sharegpt(("human", "a"))),
    "a system turn alone": json_of(sharegpt(("system", "a"))),
    "a system turn in the middle": json_of(sharegpt(("human", "a"), ("gpt", "b"), ("system", "c"), ("human", "d"), ("gpt", "e"))),
    "two system turns": json_of(sharegpt(("system", "a"), ("system", "b"), ("human", "c"), ("gpt", "d"))),
    "system beside a system turn": json_of({"system": "a", **sharegpt(("system", "b"), ("human", "c"), ("gpt", "d"))}),
    # answers
    "no #### line": json_of({"question": "2 + 3?", "answer": "5"}),
    "a word behind ####": json_of({"question": "2 + 3?", "answer": "#### five"}),
    "nothing behind ####": json_of({"question": "2 + 3?", "answer": "5\n####"}),
    "a unit behind the number": json_of({"question": "2 + 3?", "answer": "#### 5 apples"}),
    "text after the answer": json_of({"question": "2 + 3?", "answer": "#### 5\nThat is all."}),
}
FILES: dict[str, tuple[str, bytes]] = {
    "an empty file": ("a.jsonl", b""),
    "blanks only": ("a.jsonl", b" \n\r\n"),
    "a byte order mark only": ("a.json", b"\xef\xbb\xbf"),
    "an empty list": ("a.json", b"[]"),
    "an empty Parquet table": ("a.parquet", parquet(TABLE.slice(0, 0))),
    "an object": ("a.json", LINE),
    "a list under a key": ("a.json", json.dumps({"data": [ALPACA]}, indent=1).encode()),
    "a text": ("a.json", b'"hello"'),
    "a number": ("a.json", b"7"),
    "null": ("a.json", b"null"),
    "words": ("a.json", b"instruction,output\na,b"),
    "JSON lines named .json": ("a.json", LINE + b"\n" + LINE),
    "a list named .jsonl": ("a.jsonl", json.dumps([ALPACA], indent=1).encode()),
    "a list on one line named .jsonl": ("a.jsonl", json.dumps([ALPACA]).encode()),
    "a list cut off within a row": ("a.json", b"[" + LINE + b",\n" + LINE[:-9]),
    "a list without its end": ("a.json", b"[" + LINE),
    "no comma between rows": ("a.json", b"[" + LINE + b"\n" + LINE + b"]"),
    "a comma after the last row": ("a.json", b"[" + LINE + b",\n]"),
    "a comma within a row of a list": ("a.json", b'[\n{"instruction": "a",}]'),
    "a comment in a list": ("a.json", b"[\n// colours\n" + LINE + b"]"),
    "single quotes in a list": ("a.json", b"[{'instruction': 'a'}]"),
    "more after the list": ("a.json", b"[" + LINE + b"]\n[" + LINE + b"]"),
    "UTF-16": ("a.jsonl", LINE.decode().encode("utf-16")),
    "UTF-16 without its mark": ("a.jsonl", LINE.decode().encode("utf-16-le") * 5),
    "lines that end in a carriage return": ("a.jsonl", LINE + b"\r" + LINE),
    "binary data": ("a.json", bytes(range(256)) * 4),
    "a Git LFS pointer": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
    "a web page": ("a.json", b"<!DOCTYPE html>\n<html><body>404</body></html>"),
    "Parquet named .jsonl": ("a.jsonl", parquet(TABLE)),
    "an Arrow file": ("a.jsonl", b"ARROW1\0\0"),
    "JSON lines named .parquet": ("a.parquet", LINE),
    "a pointer named .parquet": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
    "Parquet cut off": ("a.parquet", parquet(TABLE)[:-20]),
    "a zip archive": ("a.jsonl", b"PK\x03\x04" + b"\0" * 30),
    "packed with bzip2": ("a.jsonl", b"BZh91AY&SY"),
    "packed with xz": ("a.jsonl", b"\xfd7zXZ\x00\x00"),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(LINE * 500, mtime=0)[:-9]),
    "zstd cut off": ("a.jsonl.zst", zstd(LINE * 500)[:-3]),
    "gzip and something behind it": ("a.jsonl.gz", gzip.compress(LINE, mtime=0) + b"more"),
    "packed twice": ("a.jsonl.gz", gzip.compress(gzip.compress(LINE, mtime=0), mtime=0)),
    "an empty file packed": ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
    "a table of values": ("a.csv", b"instruction,output\na,b"),
    "another name": ("a.yaml", b"a: b"),
    "a name without an end": ("a", LINE),
}


def bytes_of(row: str | bytes) -> bytes:
    return row if isinstance(row, bytes) else row.encode()


def fault_of(row: bytes) -> BadRowError:
    value = decode_row(row)
    try:
        parse_rows(value)
    except BadRowError as fault:
        return value if isinstance(value, BadRowError) else fault
    raise AssertionError("the row is good")


def error_of(folder: Path, name: str, content: bytes) -> str:
    file = folder / name
    file.write_bytes(content)
    try:
        for block in cut_blocks(file, work=folder / "work"):
            list(read_block(block))
    except DataError as error:
        return str(error).replace(str(folder), "inputs/data")
    raise AssertionError("the file is good")


def shown(raw: bytes) -> str:
    """As it can be printed, cut after LONGEST_EXAMPLE characters."""
    text = raw.decode("utf-8", "backslashreplace")
    text = "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in text)
    return text if len(text) <= LONGEST_EXAMPLE else text[:LONGEST_EXAMPLE] + "…"


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def tables() -> Iterator[tuple[str, str]]:
    rows = ((bytes_of(row), name) for name, row in ROWS.items())
    faults = [(fault_of(raw), raw, name) for raw, name in rows]
    yield "rows", "\n".join(f"| {fault.kind} | {name} | {code(shown(raw))} | {code(str(fault))} |" for fault, raw, name in faults)
    with tempfile.TemporaryDirectory() as folder:
        errors = {name: error_of(Path(folder), *file) for name, file in FILES.items()}
    yield "files", "\n".join(f"| {name} | {code(error)} |" for name, error in errors.items())


def fill_page(page: str) -> str:
    """The page with its tables written anew; every other word stays."""
    for name, lines in tables():
        before, head, rest = page.partition(HEADS[name])
        assert head, f"the page lacks its table of {name}"
        rule = "|" + "---|" * (head.count("|") - 1)
        _, blank, after = rest.partition("\n\n")
        page = f"{before}{head}\n{rule}\n{lines}{blank}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(fill_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
