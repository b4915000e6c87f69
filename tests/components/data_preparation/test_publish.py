"""Laws of publishing: what is left behind is what was prepared, it can be identified, and the same rows give the same bytes."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.data.tokenized import SPLITS, read_split
from components.data_preparation.publish import write_splits
from components.data_preparation.quarantined_rows import quarantine_lines, write_quarantine
from components.models import load_tokenizer

WORDS = "the quick brown fox jumps over a lazy dog and some other small animal of wood".split()


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


def rows_of(num_rows: int) -> list[dict[str, str]]:
    rng = random.Random(0)
    texts = [(" ".join(rng.choices(WORDS, k=8)), " ".join(rng.choices(WORDS, k=5))) for _ in range(num_rows)]
    return [{"prompt": prompt, "completion": completion} for prompt, completion in texts]


def left(prepared: Any, tokenizer: Any, folder: Path) -> Path:
    folder.mkdir()
    write_splits(prepared, tokenizer, folder)
    return folder


def test_what_is_left_behind_is_what_was_prepared_and_the_same_each_time(
    prepare_file: Callable[..., Any], write_lines: Callable[..., Path], tokenizer: Any, tmp_path: Path
) -> None:
    prepared = prepare_file(write_lines(rows_of(60)), tokenizer)
    one, two = (left(prepared, tokenizer, tmp_path / name) for name in ("one", "two"))
    rows = [row for split in SPLITS for row in read_split(one, split)]
    assert {row.row_id for row in rows} == {f"a.jsonl:{number}" for number in range(1, 61)}
    assert {(row.source, row.schema, row.laws) for row in rows} == {("a.jsonl", "prompt_completion", None)}
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    again = load_tokenizer(one / "tokenizer")
    assert again.chat_template == tokenizer.chat_template
    assert again("the fox 你好")["input_ids"] == tokenizer("the fox 你好")["input_ids"]


def test_the_identity_follows_training_rows_and_tokenizer_only(
    prepare_file: Callable[..., Any], write_lines: Callable[..., Path], make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    plain, other = make_tokenizer("byte_level", "plain"), make_tokenizer("byte_level", "chatml")
    rows, test = rows_of(60), write_lines(rows_of(61)[60:], "test.jsonl")

    def identity(name: str, rows: list[Any], tokenizer: Any, **options: Any) -> Any:
        prepared = prepare_file(write_lines(rows), tokenizer, work=tmp_path / "work", **options)
        return json.loads((left(prepared, tokenizer, tmp_path / name) / "identity.json").read_text(encoding="utf-8"))

    first = identity("first", rows, plain, split="train")
    assert identity("more test rows", rows, plain, split="train", test_file=test) == first
    assert identity("other template", rows, other, split="train")["template_fingerprint"] != first["template_fingerprint"]
    assert identity("fewer training rows", rows[1:], plain, split="train")["train_fingerprint"] != first["train_fingerprint"]
    assert identity("another order", rows[::-1], plain, split="train")["train_fingerprint"] != first["train_fingerprint"]


def test_the_quarantine_has_a_line_for_each_row_with_its_own_text(
    prepare_file: Callable[..., Any], write_lines: Callable[..., Path], tokenizer: Any, tmp_path: Path
) -> None:
    bad = ["{", json.dumps({"prompt": "你\u2028", "completion": 3}, ensure_ascii=False)]
    prepared = prepare_file(write_lines([*rows_of(3), bad[0], "", bad[1]]), tokenizer)
    write_quarantine(prepared, tmp_path / "quarantine.jsonl")
    text = (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8")
    assert text.splitlines() == list(quarantine_lines(prepared))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["row"], line["source"], line["line"]) for line in lines] == [
        ("a.jsonl:4", "a.jsonl", 4),
        ("a.jsonl:6", "a.jsonl", 6),
    ]
    assert [line["raw"] for line in lines] == bad
