"""Laws of what is prepared: the user's files and hub sets, an own test set, and the texts that are held out."""

import json
from pathlib import Path

import pytest

from components.data_params import DataParams
from components.data_preparation.inputs import held_out_index, sources_of_files
from components.errors import DataError

ROW = json.dumps({"prompt": "a", "completion": "b"})


def test_while_nothing_lies_there_is_no_own_test_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(ROW, encoding="utf-8")
    (tmp_path / "test" / ".gitkeep").touch()
    params = DataParams(source="files", path="data", test_path="test")
    assert [(one.file.name, one.split) for one in sources_of_files(params, tmp_path, tmp_path)] == [("a.jsonl", None)]
    (tmp_path / "test" / "a.jsonl").write_text(ROW, encoding="utf-8")
    assert [(one.file.name, one.split) for one in sources_of_files(params, tmp_path, tmp_path)] == [
        ("a.jsonl", None),
        ("test/a.jsonl", "test"),
    ]


def test_an_own_test_set_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text(ROW, encoding="utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "mine").symlink_to(tmp_path / "elsewhere")
    params = DataParams(source="files", path="data", test_path="test")
    assert [(one.file.name, one.split) for one in sources_of_files(params, tmp_path, tmp_path)] == [
        ("a.jsonl", None),
        ("test/mine/a.jsonl", "test"),
    ]


def test_a_test_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ROW, encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.test_path: .*nowhere does not exist"):
        sources_of_files(DataParams(source="files", path="a.jsonl", test_path="nowhere"), tmp_path, tmp_path)


def test_the_index_finds_what_is_held_out_and_names_it(tmp_path: Path) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": text, "target": "yes"}), encoding="utf-8")
    (tmp_path / "b.txt").write_text("short\nother words that are a line of text\n", encoding="utf-8")
    index = held_out_index(tmp_path, 13)
    assert index.find(f"so {text} it is") == ["a.jsonl:1"]
    assert index.find("Other words, that are a line of text!") == ["b.txt:1"]
    assert index.find("nothing of this stands there at all") == []


def test_a_set_that_could_not_be_scored_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    rows = [{"query": "a", "choices": ["b", "c"], "gold": 0}, {"query": "a", "choices": ["b", "c"], "gold": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: gold must be a number from 0 to 1, found 2"):
        held_out_index(tmp_path, 13)
