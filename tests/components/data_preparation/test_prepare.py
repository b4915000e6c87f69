"""Laws of preparation: no row is lost, splits follow content alone, a row is judged by what it holds."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import fingerprint_row
from components.data.embedded_splits import write_world
from components.data.rendering import apply_template
from components.data.sources import Conversation, read_source
from components.data.tokenized import SPLITS
from components.data_contract.overlap import OverlapIndex
from components.data_preparation.prepare import (
    PreparedData,
    always,
    prepare_files,
    require_rows,
    split_by_content,
    train_fingerprint,
)
from components.errors import DataError
from components.models import build_word_tokenizer
from components.params import DataParams, WorldParams

NOTHING_HELD_OUT = OverlapIndex([], [])
PARAMS = DataParams(source="files", validation_fraction=0.2, test_fraction=0.2)
WORDS = "the quick brown fox jumps over a lazy dog and some other small animal of wood".split()


def rows_of(num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"instruction": " ".join(rng.choices(WORDS, k=8)), "output": " ".join(rng.choices(WORDS, k=5))} for _ in range(num_rows)
    ]


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def prepare(path: Path, tokenizer: Any, params: DataParams = PARAMS, **changes: Any) -> PreparedData:
    split_of = changes.get("split_of", split_by_content(params))
    return prepare_files(path, tokenizer, params, split_of, changes.get("overlaps", NOTHING_HELD_OUT), PreparedData())


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


def places(prepared: PreparedData) -> dict[str, str]:
    return {row.row_id: split for split, rows in prepared.splits.items() for row in rows}


def test_rows_in_are_rows_used_and_quarantined(tokenizer: Any, tmp_path: Path) -> None:
    rng = random.Random(1)
    bad = ["{", json.dumps({"a": 1}), "[]", json.dumps({"instruction": "a", "output": "b </s> c"}), "NaN"]
    long = json.dumps({"instruction": "fox " * 600, "output": "dog"})
    rows = [*map(json.dumps, rows_of(60)), *bad, long]
    rng.shuffle(rows)
    prepared = prepare(write(tmp_path / "a.jsonl", rows), tokenizer)
    counts = prepared.counts()
    assert counts["rows_in"] == len(rows) == 66
    assert sum(counts["rows_used"].values()) == 60
    assert counts["rows_quarantined"] == 6
    places_in_file = {f"a.jsonl:{number}" for number, row in enumerate(rows, start=1) if row in (*bad, long)}
    assert {rejection.row_id for rejection in prepared.rejections} == places_in_file
    assert len(prepared.summaries) == 60
    assert counts["target_tokens"]["train"] == sum(sum(row.is_target) for row in prepared.splits["train"])


def test_one_lost_row_is_noticed(tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path / "a.jsonl", rows_of(10)), tokenizer)
    prepared.splits["train"].pop()
    with pytest.raises(AssertionError, match="a row was lost"):
        prepared.counts()


def test_a_row_keeps_its_split_when_rows_are_added(tokenizer: Any, tmp_path: Path) -> None:
    few, more = rows_of(40), rows_of(40, seed=5)
    before = places(prepare(write(tmp_path / "a.jsonl", few), tokenizer))
    after = places(prepare(write(tmp_path / "a.jsonl", [*more, *few]), tokenizer))
    assert {after[f"a.jsonl:{40 + number}"] == before[f"a.jsonl:{number}"] for number in range(1, 41)} == {True}
    assert set(before.values()) == set(SPLITS)


def test_copies_share_a_split_in_whatever_schema_and_spelling(tokenizer: Any, tmp_path: Path) -> None:
    rows = []
    for row in rows_of(30):
        question, answer = row["instruction"], row["output"]
        turns = [{"from": "human", "value": question.upper()}, {"from": "gpt", "value": f" {answer}\n"}]
        rows += [row, {"conversations": turns}, {"prompt": question.replace(" ", "  "), "completion": answer.title()}]
    found = places(prepare(write(tmp_path / "a.jsonl", rows), tokenizer))
    for first in range(1, 90, 3):
        assert len({found[f"a.jsonl:{first + copy}"] for copy in range(3)}) == 1


def test_splits_have_about_the_shares_asked_for() -> None:
    split_of = split_by_content(DataParams(validation_fraction=0.1, test_fraction=0.3))
    messages = [({"role": "user", "content": str(number)}, {"role": "assistant", "content": "x"}) for number in range(4000)]
    found = [split_of(Conversation("a:1", "a", "alpaca", one)) for one in messages]
    assert found.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)
    assert found.count("test") / 4000 == pytest.approx(0.3, abs=0.03)


def test_a_sample_is_part_of_every_larger_one_and_stays_when_rows_are_added(tokenizer: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows_of(100))
    samples = [set(places(prepare(file, tokenizer, PARAMS.model_copy(update={"max_examples": size})))) for size in (10, 40, 1000)]
    assert [len(sample) for sample in samples] == [10, 40, 100]
    assert samples[0] < samples[1] < samples[2]
    texts = {
        row.fingerprint
        for rows in prepare(file, tokenizer, PARAMS.model_copy(update={"max_examples": 10})).splits.values()
        for row in rows
    }
    doubled = write(tmp_path / "a.jsonl", [*rows_of(3, seed=9), *rows_of(100)])
    again = prepare(doubled, tokenizer, PARAMS.model_copy(update={"max_examples": 13}))
    assert len(texts & {row.fingerprint for rows in again.splits.values() for row in rows}) >= 9


def test_a_sample_keeps_the_share_of_bad_rows(tokenizer: Any, tmp_path: Path) -> None:
    rows: list[Any] = rows_of(400)
    for index in range(0, 400, 10):
        rows[index] = {**rows[index], "output": index}
    prepared = prepare(write(tmp_path / "a.jsonl", rows), tokenizer, PARAMS.model_copy(update={"max_examples": 180}))
    assert prepared.counts()["rows_in"] == 180 + len(prepared.rejections)
    assert 10 <= len(prepared.rejections) <= 30, "half of the 40 bad rows, not all"


def test_when_all_rows_are_bad_the_sample_shows_them(tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path / "a.jsonl", ["{"] * 5), tokenizer, PARAMS.model_copy(update={"max_examples": 2}))
    assert len(prepared.rejections) == 5
    with pytest.raises(DataError, match=r"5 rows in, 5 quarantined \(5 x not valid JSON: .*, first a\.jsonl:1\)"):
        require_rows(prepared)


def test_a_split_without_rows_is_refused_with_the_repair(tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path / "a.jsonl", rows_of(5)), tokenizer, split_of=always("train"))
    with pytest.raises(
        DataError, match=r"the validation split is empty: 5 rows in, 0 quarantined \(no row was rejected\)\. Add data"
    ):
        require_rows(prepared)


def test_a_row_that_the_template_refuses_is_quarantined_with_its_reason(
    make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    file = write(tmp_path / "a.jsonl", [{"messages": turns[1:]}, {"messages": turns}])
    [rejection] = prepare(file, make_tokenizer("byte_level", "gemma")).rejections
    assert (rejection.row_id, rejection.reason) == (
        "a.jsonl:2",
        "the chat template refuses the conversation: System role not supported",
    )


def test_a_row_too_long_is_quarantined_and_a_row_cut_is_counted(tokenizer: Any, tmp_path: Path) -> None:
    turns = [{"role": role, "content": "fox " * 10} for role in ("user", "assistant")] * 3
    file = write(
        tmp_path / "a.jsonl", [{"messages": turns}, {"messages": turns[:2]}, {"prompt": "fox " * 300, "completion": "dog"}]
    )
    prepared = prepare(file, tokenizer, PARAMS.model_copy(update={"max_length": 60}))
    [rejection] = prepared.rejections
    assert (rejection.row_id, rejection.reason.partition(" has ")[0]) == ("a.jsonl:3", "the first exchange alone")
    assert prepared.counts()["rows_cut"] == 1
    rows = [row for rows in prepared.splits.values() for row in rows]
    assert all(len(row.input_ids) <= 60 for row in rows)


def test_a_summary_says_what_the_row_holds(tokenizer: Any, tmp_path: Path) -> None:
    question = "the quick brown fox jumps over a lazy dog and some other small animal of wood"
    rows = [
        {"question": question, "answer": "so \ufffd\n#### 1,234"},
        {"question": "how many", "answer": "#### many"},
        {"prompt": "a", "completion": "bc"},
    ]
    overlaps = OverlapIndex(["ood.json:7"], [f"say {question} now"])
    file = write(tmp_path / "a.jsonl", rows)
    first, second, third = prepare(file, tokenizer, split_of=always("train"), overlaps=overlaps).summaries
    assert (first.num_ood_overlaps, second.num_ood_overlaps) == (1, 0)
    assert (first.has_replacement_character, second.has_replacement_character) == (True, False)
    assert (first.answer_is_well_formed, second.answer_is_well_formed, third.answer_is_well_formed) == (True, False, None)
    assert (third.prompt_characters, third.target_characters, third.num_turns) == (1, 2, 2)
    assert all(one.end_of_turn_is_target and one.starts_with_user and one.ends_with_assistant for one in (first, second, third))
    held_out = prepare(file, tokenizer, split_of=always("test"), overlaps=overlaps).summaries[0]
    assert held_out.num_ood_overlaps == 0, "only training rows are asked"


def test_a_turn_that_nothing_closes_is_seen(make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = make_tokenizer("byte_level")
    apply_template(tokenizer, "chatml")  # <|im_end|> is no token of this tokenizer, so no single token ends the turn
    [summary] = prepare(write(tmp_path / "a.jsonl", rows_of(1)), tokenizer).summaries
    assert not summary.end_of_turn_is_target


@pytest.mark.parametrize("answer", ["#### 5", "x #### -3", "#### 1,234.50", "####$7", "#### 0"])
def test_a_number_after_the_marks_is_well_formed(answer: str, tokenizer: Any, tmp_path: Path) -> None:
    [summary] = prepare(write(tmp_path / "a.jsonl", [{"question": "q", "answer": answer}]), tokenizer).summaries
    assert summary.answer_is_well_formed


def test_a_fingerprint_is_of_tokens_and_marks(tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path / "a.jsonl", rows_of(10)), tokenizer)
    rows = prepared.splits["train"]
    assert all(row.fingerprint == fingerprint_row(row.input_ids, row.is_target) for row in rows)
    assert train_fingerprint(rows) == train_fingerprint(list(rows))
    assert train_fingerprint(rows) != train_fingerprint(rows[::-1])


@pytest.mark.parametrize("max_examples", [None, 7])
@pytest.mark.parametrize("max_length", [96, 16])
def test_each_target_of_the_embedded_world_has_its_law(max_examples: int | None, max_length: int, tmp_path: Path) -> None:
    from components.data.embedded_world import EmbeddedWorld

    world = WorldParams(num_train_examples=30, num_validation_examples=6, num_test_examples=6, num_ood_items_per_task=5)
    write_world(tmp_path, world)
    tokenizer = build_word_tokenizer(EmbeddedWorld(world).vocabulary(), 96)
    params = DataParams(max_length=max_length, max_examples=max_examples)
    prepared = prepare(tmp_path / "raw" / "train", tokenizer, params, split_of=always("train"))
    assert (prepared.counts()["rows_cut"] > 0) == (max_length == 16)
    for row in prepared.splits["train"]:
        laws = row.true_laws()
        targets = [token for token, is_target in zip(row.input_ids, row.is_target, strict=True) if is_target]
        assert laws is not None and len(laws) == len(targets)
        assert all(law[token] > 0.0 for law, token in zip(laws, targets, strict=True))


def test_every_file_of_a_folder_is_read(tokenizer: Any, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows_of(4))
    (tmp_path / "b.json").write_text(json.dumps(rows_of(3, seed=2)), encoding="utf-8")
    prepared = prepare(tmp_path, tokenizer)
    assert prepared.counts()["rows_in"] == 7 == len(list(read_source(tmp_path / "a.jsonl"))) + 3
    assert {row.source for rows in prepared.splits.values() for row in rows} == {"a.jsonl", "b.json"}
