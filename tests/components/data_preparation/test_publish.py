"""Laws of publishing: a failed gate says what, where and how to repair it; what is left behind can be identified."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.data.tokenized import SPLITS, read_split
from components.data_contract.overlap import OverlapIndex
from components.data_preparation.prepare import PreparedData, prepare_files, split_by_content
from components.data_preparation.publish import check, ood_index, quarantine_text, write_prepared
from components.errors import DataError
from components.models import load_tokenizer
from components.params import DataParams

PARAMS = DataParams(source="files", validation_fraction=0.2, test_fraction=0.2)
WORDS = "the quick brown fox jumps over a lazy dog and some other small animal of wood".split()


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


def prepared_from(tmp_path: Path, tokenizer: Any, *more: str) -> PreparedData:
    rng = random.Random(0)
    texts = [(" ".join(rng.choices(WORDS, k=8)), " ".join(rng.choices(WORDS, k=5))) for _ in range(60)]
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in texts]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, *more]), encoding="utf-8")
    split_of = split_by_content(PARAMS)
    return prepare_files(tmp_path / "a.jsonl", tokenizer, PARAMS, split_of, OverlapIndex([], []), PreparedData())


def test_sound_data_pass_and_leave_their_documents(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    check(prepared_from(tmp_path, tokenizer), PARAMS, tmp_path / "left", failures=tmp_path / "failed")
    assert json.loads((tmp_path / "left" / "validation.json").read_text(encoding="utf-8"))["success"]
    assert (tmp_path / "left" / "data_docs" / "index.html").exists()
    assert (tmp_path / "left" / "quarantine.jsonl").read_text(encoding="utf-8") == ""
    assert not (tmp_path / "failed").exists()


def test_failed_data_say_which_rows_why_and_where_all_findings_are(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "of an earlier run").write_text("x", encoding="utf-8")
    prepared = prepared_from(tmp_path, tokenizer, '{"prompt": "a", "completion": ', '{"prompt": "a"}')
    with pytest.raises(DataError) as caught:
        check(prepared, PARAMS, tmp_path / "left", failures=tmp_path / "failed")
    message = str(caught.value)
    assert "few_rows_rejected" in message and "raise data.max_rejected_fraction in params.yaml" in message
    assert "a.jsonl:61: not valid JSON: Expecting value at column 31" in message
    assert "a.jsonl:62: no known schema has the keys ['prompt']" in message
    assert f"{tmp_path / 'failed'}/data_docs/index.html" in message
    kept = [json.loads(line) for line in (tmp_path / "failed" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in kept] == ["a.jsonl:61", "a.jsonl:62"]
    assert not (tmp_path / "failed" / "of an earlier run").exists()


def test_the_quarantine_has_a_line_for_each_row(tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, tokenizer, "{", "", json.dumps({"prompt": "你\u2028", "completion": 3}))
    lines = [json.loads(line) for line in quarantine_text(prepared).split("\n")[:-1]]
    assert [(line["row"], line["source"]) for line in lines] == [("a.jsonl:61", "a.jsonl"), ("a.jsonl:63", "a.jsonl")]


def test_what_is_left_behind_is_what_was_prepared_and_the_same_each_time(tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, tokenizer)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert write_prepared(prepared, tokenizer, tmp_path / name) == prepared.counts()
    for split in SPLITS:
        assert list(read_split(tmp_path / "one", split)) == prepared.splits[split]
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    again = load_tokenizer(tmp_path / "one" / "tokenizer")
    assert again.chat_template == tokenizer.chat_template
    assert again("the fox 你好")["input_ids"] == tokenizer("the fox 你好")["input_ids"]


def test_the_identity_follows_training_rows_and_tokenizer_only(make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    def identity(name: str, prepared: PreparedData, tokenizer: Any) -> Any:
        (tmp_path / name).mkdir()
        write_prepared(prepared, tokenizer, tmp_path / name)
        return json.loads((tmp_path / name / "identity.json").read_text(encoding="utf-8"))

    tokenizer, other = make_tokenizer("byte_level", "plain"), make_tokenizer("byte_level", "chatml")
    prepared = prepared_from(tmp_path, tokenizer)
    first = identity("first", prepared, tokenizer)
    prepared.splits["test"].pop()
    prepared.num_rows_in -= 1
    assert identity("fewer test rows", prepared, tokenizer) == first
    assert identity("other template", prepared, other)["tokenizer_fingerprint"] != first["tokenizer_fingerprint"]
    prepared.splits["train"].pop()
    prepared.num_rows_in -= 1
    assert identity("fewer training rows", prepared, tokenizer)["train_fingerprint"] != first["train_fingerprint"]


def test_the_index_finds_what_is_held_out_and_names_it(tmp_path: Path) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": text, "target": "yes"}), encoding="utf-8")
    (tmp_path / "b.txt").write_text("short\nother words that are a line of text\n", encoding="utf-8")
    index = ood_index(tmp_path)
    assert index.find(f"so {text} it is") == ["a.jsonl:1"]
    assert index.find("Other words, that are a line of text!") == ["b.txt:1"]
    assert index.find("nothing of this stands there at all") == []


def test_a_set_that_could_not_be_scored_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    rows = [{"query": "a", "choices": ["b", "c"], "gold": 0}, {"query": "a", "choices": ["b", "c"], "gold": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: gold must be a number from 0 to 1, found 2"):
        ood_index(tmp_path)
