"""Laws of held-out files: every format is recognised, a bad item is named with its place, and texts are found for the overlap."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from components.data.conversations import Conversation
from components.data.held_out import Question, list_ood_files, ood_texts, read_json_rows, read_ood_items
from components.errors import DataError

FORMATS: dict[str, tuple[dict[str, Any], list[tuple[str, str]], int]] = {
    "choices": (
        {"query": "Which one swims?", "choices": ["a stone", " a fish", "a chair"], "gold": 1},
        [("Which one swims?", " a stone"), ("Which one swims?", " a fish"), ("Which one swims?", " a chair")],
        1,
    ),
    "numbers to choose": (
        {"query": "2+2=", "choices": [4, 5.0, 0.5], "gold": 0},
        [("2+2=", f" {n}") for n in ("4", "5", "0.5")],
        0,
    ),
    "contexts": (
        {
            "context_options": ["The cup broke, since the cup", "The cup broke, since the floor"],
            "continuation": "was thin.",
            "gold": 0,
        },
        [("The cup broke, since the cup", " was thin."), ("The cup broke, since the floor", " was thin.")],
        0,
    ),
    "sentences": (
        {"sentence_good": "The dogs bark.", "sentence_bad": "The dogs barks.", "UID": "x", "one_prefix_method": False},
        [("", "The dogs bark."), ("", "The dogs barks.")],
        0,
    ),
    "continuation": ({"context": "3 + 4 =", "continuation": " 7"}, [("3 + 4 =", " 7")], 0),
    "continuation without space": ({"context": "He went", "continuation": "home"}, [("He went", " home")], 0),
    "body and question": (
        {"ID": "1", "Body": "Ann has 3 figs.", "Question": "How many?", "Answer": 3.0, "Type": "Add"},
        [("Ann has 3 figs. How many?", " 3")],
        0,
    ),
    "input and target": ({"input": "Is ice cold?", "target": "Yes"}, [("Is ice cold?", " Yes")], 0),
    "input and number": ({"input": "Half of 3?", "target": 1.5}, [("Half of 3?", " 1.5")], 0),
    "input and long number": ({"input": "10^400?", "target": 10**400}, [("10^400?", f" {10**400}")], 0),
    "input and negative number": ({"input": "3 - 5?", "target": -2.0}, [("3 - 5?", " -2")], 0),
}


def write(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) if file.suffix == ".jsonl" else json.dumps(rows)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_by_its_keys(name: str, suffix: str, tmp_path: Path) -> None:
    row, pairs, gold = FORMATS[name]
    items = read_ood_items(write(tmp_path / f"set{suffix}", [row, row]))
    assert items == [Question(f"set{suffix}:{place}", tuple(pairs), gold) for place in (1, 2)]


def test_big_bench_examples_are_found_under_their_key(tmp_path: Path) -> None:
    rows = [{"input": "Is ice cold?", "target": "Yes"}]
    file = tmp_path / "set.json"
    file.write_text(json.dumps({"canary": "c", "examples": rows}), encoding="utf-8")
    assert read_json_rows(file) == [(1, rows[0])]
    assert read_ood_items(file) == [Question("set.json:1", (("Is ice cold?", " Yes"),), 0)]


def test_training_schemas_are_conversations(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"question": "2?", "answer": "#### 2"},
    ]
    items = read_ood_items(write(tmp_path / "set.jsonl", rows))
    assert [item.schema for item in items if isinstance(item, Conversation)] == ["messages", "gsm8k"]


CHOICES = FORMATS["choices"][0]
SENTENCES = FORMATS["sentences"][0]
BAD_ITEMS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "not an object": (CHOICES, [1], "must be a JSON object, found a list"),
    "another format": (CHOICES, SENTENCES, "query is missing"),
    "query is null": (CHOICES, {**CHOICES, "query": None}, "query must be a text, found null"),
    "no choices": (CHOICES, {**CHOICES, "choices": []}, "choices must be a list of at least two, found a list without entries"),
    "one choice": (CHOICES, {**CHOICES, "choices": ["a"], "gold": 0}, "choices must be a list of at least two"),
    "choices are a text": (CHOICES, {**CHOICES, "choices": "abc"}, "choices must be a list of at least two, found a text"),
    "choice is empty": (CHOICES, {**CHOICES, "choices": ["a", " "]}, "choices is empty"),
    "choice is null": (CHOICES, {**CHOICES, "choices": ["a", None]}, "choices must be a text, found null"),
    "choice is a truth value": (CHOICES, {**CHOICES, "choices": ["a", True]}, "choices must be a text, found a truth value"),
    "gold too large": (CHOICES, {**CHOICES, "gold": 3}, "gold must be a number from 0 to 2, found 3"),
    "gold negative": (CHOICES, {**CHOICES, "gold": -1}, "gold must be a number from 0 to 2, found -1"),
    "gold a letter": (CHOICES, {**CHOICES, "gold": "B"}, "gold must be a number from 0 to 2, found 'B'"),
    "gold a truth value": (CHOICES, {**CHOICES, "gold": True}, "gold must be a number from 0 to 2, found True"),
    "gold missing": (CHOICES, {"query": "a", "choices": ["a", "b"]}, "gold must be a number from 0 to 1, found None"),
    "sentence is empty": (SENTENCES, {**SENTENCES, "sentence_bad": ""}, "sentence_bad is empty"),
    "answer is null": ({"input": "a", "target": "b"}, {"input": "a", "target": None}, "target must be a text, found null"),
    "answer is a list": ({"input": "a", "target": "b"}, {"input": "a", "target": ["b"]}, "target must be a text, found a list"),
    "answer is blank": ({"context": "a", "continuation": "b"}, {"context": "a", "continuation": " "}, "continuation is empty"),
    "half a character": ({"input": "a", "target": "b"}, {"input": "\ud83d", "target": "b"}, "input holds half a character"),
    "no format at all": ({"text": "a"}, {"text": "a"}, "no schema has the keys 'text'"),
}


@pytest.mark.parametrize("kind", BAD_ITEMS)
def test_a_bad_item_is_refused_with_place_and_reason(kind: str, tmp_path: Path) -> None:
    first, bad, reason = BAD_ITEMS[kind]
    file = write(tmp_path / "set.jsonl", [first, bad, first])
    place = 1 if kind == "no format at all" else 2
    with pytest.raises(DataError, match=rf"set\.jsonl:{place}: .*{reason}.*\. [A-Z]"):
        read_ood_items(file)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"input": "a", "target": "b"}\n{"input": ', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"input": "a", "target": NaN}', r"a\.jsonl:1: NaN is not valid JSON"),
        ("a.jsonl", b'{"input": "caf\xe9", "target": "b"}', r"a\.jsonl:1: not UTF-8"),
        ("a.json", b'{"canary": "x"}', r"found an object without a list 'examples'"),
        ("a.json", b'{"examples": []}', "is an empty list"),
        ("a.json", b'{"examples": [{"input": NaN}]}', r"a\.json: NaN is not valid JSON\. Write null"),
        ("a.json", b'{"input": "a"}\n{"input": "a"}', r"is JSON lines, not one list\. Name it \.jsonl"),
        ("a.json", b"[]", "is an empty list"),
        ("a.json", b'[{"input": "a"}', r"a\.json:1:16: not valid JSON"),
        ("a.jsonl", b"", "is empty"),
    ],
)
def test_a_file_that_is_no_set_is_refused(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_ood_items(tmp_path / name)
    with pytest.raises(DataError, match=reason):
        ood_texts(tmp_path / name)


def test_sets_are_found_below_a_folder_and_laws_are_not_sets(tmp_path: Path) -> None:
    for name in ("b/two.jsonl", "a.txt", "c.json", "c.json.laws.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert [file.relative_to(tmp_path).as_posix() for file in list_ood_files(tmp_path)] == ["a.txt", "b/two.jsonl", "c.json"]
    assert list_ood_files(tmp_path / "a.txt") == [tmp_path / "a.txt"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_no_set_at_all_is_refused_with_the_parameter(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.ood_path: no \.json, \.jsonl or \.txt set at .*Put held-out sets there"):
        list_ood_files(tmp_path / name)


def test_texts_are_what_is_asked_not_what_is_answered(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "one two three four"}, {"role": "assistant", "content": "five six seven eight"}]
    assert ood_texts(write(tmp_path / "a.jsonl", [{"messages": turns}])) == ["one two three four"]
    rows = [{"query": "one two three four", "choices": ["short", "five six seven eight"], "gold": 0}]
    assert ood_texts(write(tmp_path / "b.json", rows)) == ["one two three four", "five six seven eight"]


def test_lines_of_a_text_are_texts_and_bytes_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone two three four\r\n\r\nshort line\nfive six seven eight\n")
    assert ood_texts(tmp_path / "a.txt") == ["one two three four", "five six seven eight"]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait complet")
    with pytest.raises(DataError, match=r"b\.txt: not UTF-8 at byte 3"):
        ood_texts(tmp_path / "b.txt")


def test_a_link_back_to_its_own_folder_gives_no_file_twice(tmp_path: Path) -> None:
    write(tmp_path / "sets" / "inner" / "a.jsonl", [{"input": "a", "target": "b"}])
    (tmp_path / "sets" / "inner" / "back").symlink_to(tmp_path / "sets")
    write(tmp_path / "elsewhere" / "b.jsonl", [{"input": "a", "target": "b"}])
    (tmp_path / "sets" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [file.name for file in list_ood_files(tmp_path / "sets")] == ["a.jsonl", "b.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"input": "a", "target": "b"}])
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match=r"closed cannot be listed: Permission denied"):
        list_ood_files(tmp_path)
