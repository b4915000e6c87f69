"""Laws of reading: every published schema parses, and whatever is wrong gives one message with its place and its reason."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from components.data.json_rows import read_rows
from components.data.sources import ROLES, Conversation, Rejection, list_sources, read_source
from components.errors import DataError

ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
SHAREGPT = {"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
GSM8K = {"question": "2 + 3?", "answer": "2 + 3 = 5\n#### 5"}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好 😀"},
        {"role": "assistant", "content": "再见"},
    ]
}
COMPLETION = {"prompt": "2 + 3 =", "completion": " 5"}


def write(folder: Path, name: str, content: Any) -> Path:
    """Bytes as they are, a text as UTF-8, a list of rows in the form that the suffix names."""
    file = folder / name
    if isinstance(content, list):
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
        content = lines if name.endswith(".jsonl") else json.dumps(content, ensure_ascii=False, indent=1)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(
    ("schema", "row", "messages"),
    [
        ("alpaca", ALPACA, ["user: Name a colour.", "assistant: Blue."]),
        ("alpaca", {**ALPACA, "input": "Not red."}, ["user: Name a colour.\n\nNot red.", "assistant: Blue."]),
        ("alpaca", {"instruction": "a", "output": "b"}, ["user: a", "assistant: b"]),
        ("alpaca", {**ALPACA, "input": None}, ["user: Name a colour.", "assistant: Blue."]),
        ("sharegpt", SHAREGPT, ["user: Hi", "assistant: Hello"]),
        ("sharegpt", turns(("system", "s"), ("user", "u"), ("chatgpt", "a")), ["system: s", "user: u", "assistant: a"]),
        ("gsm8k", GSM8K, ["user: 2 + 3?", "assistant: 2 + 3 = 5\n#### 5"]),
        ("messages", MESSAGES, ["system: Be brief.", "user: 你好 😀", "assistant: 再见"]),
        ("prompt_completion", COMPLETION, ["user: 2 + 3 =", "assistant:  5"]),
    ],
)
def test_every_schema_parses(schema: str, row: dict[str, Any], messages: list[str], suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path, f"rows{suffix}", [row, {**row, "unknown key": 1.5}])
    found = list(read_source(file))
    assert [one.row_id for one in found] == [f"rows{suffix}:1", f"rows{suffix}:2"]
    for one in found:
        assert isinstance(one, Conversation)
        assert (one.schema, one.source) == (schema, file.name)
        assert [f"{message['role']}: {message['content']}" for message in one.messages] == messages


def test_the_same_conversation_in_two_schemas_gives_the_same_messages(tmp_path: Path) -> None:
    rows = [{"instruction": "Hi", "output": "Hello"}, SHAREGPT, {"prompt": "Hi", "completion": "Hello"}]
    found = list(read_source(write(tmp_path, "rows.jsonl", rows)))
    assert len({str(one.messages) for one in found if isinstance(one, Conversation)}) == 1


BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "truncated": ('{"instruction": "a", "out', r"not valid JSON: Unterminated string.* at column 2\d"),
    "trailing comma": ('{"instruction": "a", "output": "b",}', "not valid JSON.* at column 3"),
    "single quotes": ("{'instruction': 'a'}", "not valid JSON: Expecting property name.* at column 2"),
    "two objects": ('{"a": 1} {"b": 2}', "not valid JSON: Extra data at column 10"),
    "plain words": ("instruction: a", "not valid JSON: Expecting value at column 1"),
    "control character": ('{"instruction": "a\tb", "output": "c"}', "not valid JSON: Invalid control character"),
    "zero byte": ('{"instruction": "a\0", "output": "c"}', "not valid JSON: Invalid control character"),
    "NaN": ('{"instruction": "a", "output": NaN}', "NaN is not valid JSON"),
    "infinity": ('{"instruction": "a", "output": "b", "score": -Infinity}', "-Infinity is not valid JSON"),
    "number too long": ('{"instruction": "a", "output": "b", "id": ' + "9" * 5000 + "}", "a number of 5000 digits"),
    "nested too deeply": ('{"messages": ' + "[" * 100_000, "nested too deeply"),
    "repeated key": ('{"instruction": "a", "output": "b", "output": "c"}', "the key 'output' occurs twice"),
    "repeated key within": ('{"messages": [{"role": "user", "role": "user"}]}', "the key 'role' occurs twice"),
    "invalid UTF-8": (b'{"instruction": "caf\xe9", "output": "b"}', "not UTF-8 at byte 20"),
    "UTF-8 cut in the middle": ('{"instruction": "é'.encode()[:-1], "not UTF-8 at byte 17"),
    "encoded surrogates": (b'{"instruction": "\xed\xa0\xbd", "output": "b"}', "not UTF-8 at byte 17"),
}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "null": (None, "a row must be a JSON object, found null"),
    "number": (7, "found a number"),
    "text": ("hello", "found a text"),
    "truth value": (True, "found a truth value"),
    "list": ([1], "found a list"),
    "empty object": ({}, r"no known schema has the keys \[\] \(known: alpaca: instruction \+ output; "),
    "wrong schema": ({"text": "a", "label": 3}, r"no known schema has the keys \['label', 'text'\]"),
    "half a schema": ({"instruction": "a"}, r"no known schema has the keys \['instruction'\]"),
    "null text": ({**ALPACA, "output": None}, "output must be a text, found null"),
    "number for a text": ({**ALPACA, "instruction": 3}, "instruction must be a text, found a number"),
    "number for an input": ({**ALPACA, "input": 3}, "input must be a text, found a number"),
    "list for a text": ({**ALPACA, "output": []}, "output must be a text, found a list without entries"),
    "object for a text": ({**ALPACA, "output": {"a": 1}}, "output must be a text, found an object"),
    "empty text": ({**ALPACA, "output": ""}, "output is empty"),
    "blank text": ({**ALPACA, "instruction": " \n\t "}, "instruction is empty"),
    "half a character": ({**ALPACA, "output": "x\ud83d"}, r"output holds half a character \('\\ud83d' at 1\)"),
    "no ####": ({**GSM8K, "answer": "5"}, "answer has no '#### <number>' line"),
    "empty question": ({**GSM8K, "question": ""}, "question is empty"),
    "empty completion": ({**COMPLETION, "completion": " "}, "completion is empty"),
    "turns are a text": ({"messages": "hi"}, "messages must be a list with at least one turn, found a text"),
    "turns are null": ({"conversations": None}, "conversations must be a list with at least one turn, found null"),
    "no turns": ({"conversations": []}, "found a list without entries"),
    "turn is a text": ({"messages": ["hi"]}, r"messages\[1\] must be an object, found a text"),
    "turn without role": ({"messages": [{"content": "a"}]}, r"messages\[1\].role: unknown role None"),
    "turn without text": ({"messages": [{"role": "user"}]}, r"messages\[1\].content is missing"),
    "turn with null": (turns(("human", None)), r"conversations\[1\].value must be a text, found null"),
    "turn with number": (turns(("human", "a"), ("gpt", 3)), r"conversations\[2\].value must be a text, found a number"),
    "turn with parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "content must be a text"),
    "empty turn": (turns(("human", "a"), ("gpt", "")), r"conversations\[2\].value is empty"),
    "unknown role": (turns(("human", "a"), ("bard", "b")), r"conversations\[2\].from: unknown role 'bard' \(known: assistant, "),
    "role is a list": (turns((["human"], "a")), r"unknown role \['human'\]"),
    "role is an object": (turns(({}, "a")), r"unknown role \{\}"),
    "odd turns": (turns(("human", "a"), ("gpt", "b"), ("human", "c")), "the last turn is not the assistant's"),
    "only a question": (turns(("human", "a")), "the last turn is not the assistant's"),
    "only a system turn": (turns(("system", "a")), r"turns must alternate user, assistant \(found system\)"),
    "assistant first": (turns(("gpt", "a"), ("human", "b")), r"must alternate.*\(found assistant user\)"),
    "twice the user": (turns(("human", "a"), ("human", "b"), ("gpt", "c")), r"\(found user user assistant\)"),
    "system later": (turns(("human", "a"), ("gpt", "b"), ("system", "c")), r"\(found user assistant system\)"),
    "two system turns": (turns(("system", "a"), ("system", "b"), ("human", "c")), r"\(found system system user\)"),
    "many wrong turns": (turns(*[("human", "a")] * 20), r"user user …\)"),
}


def check_one_rejection(file: Path, place: int, reason: str, num_rows: int) -> None:
    found = list(read_source(file))
    assert len(found) == num_rows
    [rejection] = [one for one in found if isinstance(one, Rejection)]
    assert (rejection.row_id, rejection.source) == (f"{file.name}:{place}", file.name)
    assert re.search(reason, rejection.reason), rejection.reason
    rejection.reason.encode()  # it can be printed


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_costs_one_row_and_is_named_with_line_and_reason(kind: str, tmp_path: Path) -> None:
    line, reason = BAD_LINES[kind]
    good = json.dumps(ALPACA).encode()
    file = write(tmp_path, "a.jsonl", b"\n".join([good, b"", line.encode() if isinstance(line, str) else line, good]))
    check_one_rejection(file, 3, reason, 3)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_costs_one_row_and_is_named_with_place_and_reason(kind: str, suffix: str, tmp_path: Path) -> None:
    row, reason = BAD_ROWS[kind]
    file = tmp_path / f"a{suffix}"
    rows = [json.dumps(one) for one in (ALPACA, row, GSM8K)]  # ASCII: half a character is written as \ud83d
    file.write_text("\n".join(rows) if suffix == ".jsonl" else f"[{', '.join(rows)}]", encoding="utf-8")
    check_one_rejection(file, 2, reason, 3)


@pytest.mark.parametrize("kind", ["NaN", "infinity", "number too long", "repeated key", "repeated key within"])
def test_what_is_wrong_inside_a_row_of_a_list_costs_that_row_only(kind: str, tmp_path: Path) -> None:
    line, reason = BAD_LINES[kind]
    file = write(tmp_path, "a.json", f"[{json.dumps(ALPACA)},\n {line}\n, {json.dumps(GSM8K)} ]\n")
    check_one_rejection(file, 2, reason, 3)


BAD_FILES: dict[str, tuple[str, Any, str]] = {
    "empty": ("a.jsonl", "", "is empty"),
    "blank": ("a.jsonl", " \n\r\n", "is empty"),
    "only a byte order mark": ("a.json", b"\xef\xbb\xbf", "is empty"),
    "empty list": ("a.json", "[]", "is an empty list"),
    "object": ("a.json", json.dumps(ALPACA), "must be a list of rows, found an object"),
    "text": ("a.json", '"hello"', "must be a list of rows, found a text"),
    "JSON lines named .json": (
        "a.json",
        f"{json.dumps(ALPACA)}\n{json.dumps(ALPACA)}",
        r"a\.json:2:1: .*JSON lines: name it \.jsonl",
    ),
    "list named .jsonl": ("a.jsonl", json.dumps([ALPACA], indent=1), r"one JSON list, not JSON lines\. Name it \.json"),
    "list on one line named .jsonl": ("a.jsonl", json.dumps([ALPACA]), r"Name it \.json"),
    "truncated list": ("a.json", json.dumps([ALPACA, GSM8K], indent=1)[:-9], r"a\.json:\d+:\d+: not valid JSON"),
    "list without end": ("a.json", json.dumps([ALPACA])[:-1], r"a\.json:1:\d+: not valid JSON \(Expecting ',' delimiter\)"),
    "comma missing": ("a.json", f"[{json.dumps(ALPACA)}\n{json.dumps(ALPACA)}]", r"a\.json:2:1: not valid JSON \(Expecting ','"),
    "comma at the end": ("a.json", f"[{json.dumps(ALPACA)},\n]", r"a\.json:2:1: not valid JSON \(Expecting value\)"),
    "words after the list": ("a.json", f"[{json.dumps(ALPACA)}]\n]", r"a\.json:2:1: not valid JSON \(Extra data\)"),
    "not JSON": ("a.json", "instruction,output\na,b", r"a\.json:1:1: not valid JSON \(Expecting value\)"),
    "deep list": ("a.json", "[" * 100_000, "nested too deeply"),
    "latin-1": ("a.json", '[{"instruction": "é"}]'.encode("latin-1"), r"not UTF-8 at byte 18.*iconv"),
    "UTF-16": ("a.jsonl", json.dumps(ALPACA).encode("utf-16"), r"UTF-16\. Convert it: iconv -f utf-16"),
    "gzip": ("a.jsonl", gzip.compress(json.dumps([ALPACA] * 50).encode(), mtime=0), "not a text file.*compressed"),
    "binary": ("a.json", bytes(range(256)) * 4, "not a text file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_read_at_all_is_one_error_with_its_name_and_the_repair(kind: str, tmp_path: Path) -> None:
    name, content, reason = BAD_FILES[kind]
    file = write(tmp_path, name, content)
    with pytest.raises(DataError, match=reason) as caught:
        list(read_source(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_harmless_variants_read_alike(suffix: str, tmp_path: Path) -> None:
    rows = [ALPACA, MESSAGES, GSM8K]
    text = write(tmp_path, f"a{suffix}", rows).read_text(encoding="utf-8")
    variants = {
        "byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "CRLF": text.replace("\n", "\r\n").encode(),
        "final line break": text.encode() + b"\n",
        "escapes": json.dumps(rows).encode() if suffix == ".json" else "\n".join(map(json.dumps, rows)).encode(),
        "blanks around": (" " + text.replace("\n", " \n ") + "\t").encode(),
    }
    expected = list(read_source(tmp_path / f"a{suffix}"))
    assert all(isinstance(one, Conversation) for one in expected)
    for name, content in variants.items():
        assert list(read_source(write(tmp_path, f"a{suffix}", content))) == expected, name


def test_line_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", [{"instruction": "a\u2028b\x85c", "output": "d"}])
    [found] = read_source(file)
    assert isinstance(found, Conversation) and found.messages[0]["content"] == "a\u2028b\x85c"


def test_rows_of_a_list_are_those_of_json_loads(tmp_path: Path) -> None:
    rows = [{"a": [1, 2.5, {"b": None}], "c": "]},"}, [], "x", 3, True, {"d": "😀"}]
    for indent in (None, 1, 4):
        file = tmp_path / "a.json"
        file.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
        assert list(read_rows(file)) == list(enumerate(rows, start=1))


def test_a_folder_gives_its_data_files_in_name_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "a.json.laws.jsonl", "README.md", "c.csv"):
        write(tmp_path, name, "x")
    (tmp_path / "folder.json").mkdir()
    assert [file.name for file in list_sources(tmp_path)] == ["a.json", "b.jsonl"]
    assert list_sources(tmp_path / "b.jsonl") == [tmp_path / "b.jsonl"]


def test_a_path_without_data_is_refused_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: .*absent does not exist\. Set data\.path"):
        list_sources(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no \.json or \.jsonl file \(found: nothing\)"):
        list_sources(tmp_path)
    file = write(tmp_path, "table.csv", "a,b")
    with pytest.raises(DataError, match=r"\(found: table\.csv\)"):
        list_sources(tmp_path)
    with pytest.raises(DataError, match=r"table\.csv is neither \.json .* nor \.jsonl"):
        list_sources(file)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    os.symlink(tmp_path / "gone.json", tmp_path / "a.json")
    with pytest.raises(DataError, match=r"a\.json cannot be read"):
        list(read_source(tmp_path / "a.json"))


def test_every_role_has_a_name_in_messages() -> None:
    assert set(ROLES.values()) == {"user", "assistant", "system"}
