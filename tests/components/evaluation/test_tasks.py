"""Laws of held-out sets: every format becomes items, gold is the right option, what does not fit is left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import write_text
from components.data.embedded_splits import write_world
from components.data.embedded_world import EmbeddedWorld
from components.data.instruction_rules import Rule
from components.errors import DataError
from components.evaluation.held_out_sets import name_ood_files
from components.evaluation.items import EvaluationItem, EvaluationSet
from components.evaluation.tasks import read_ood_set
from components.models import build_word_tokenizer
from components.params import WorldParams


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


def read(
    tmp_path: Path, rows: Any, tokenizer: Any, max_length: int = 200, max_items: int = 100, name: str = "set.json"
) -> EvaluationSet:
    write_text(tmp_path / name, rows if isinstance(rows, str) else json.dumps(rows))
    return read_ood_set(tmp_path / name, tokenizer, max_length, max_items)


def said(item: EvaluationItem, tokenizer: Any) -> list[tuple[str, str]]:
    """Context and targets of each option, decoded."""
    texts = []
    for row in item.rows:
        marks = list(zip(row.input_ids[1:], row.is_target[1:], strict=True))
        texts.append(
            tuple(tokenizer.decode([token for token, is_target in marks if is_target == wanted]) for wanted in (False, True))
        )
    return texts


def test_multiple_choice_has_a_row_for_each_option_and_gold_is_the_right_one(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"query": "Which one swims?", "choices": ["a stone", "a fish", "a chair"], "gold": gold} for gold in (0, 1, 2)]
    items = read(tmp_path, rows, tokenizer)
    assert [item.gold for item in items] == [0, 1, 2]
    assert {item.kind for item in items} == {"choice"}
    assert said(items[1], tokenizer) == [("Which one swims?", f" {choice}") for choice in rows[0]["choices"]]


def test_contexts_to_choose_from_share_their_continuation(tokenizer: Any, tmp_path: Path) -> None:
    row = {
        "context_options": ["The cup broke, since the cup", "The cup broke, since the floor"],
        "continuation": "was thin.",
        "gold": 0,
    }
    [item] = read(tmp_path, [row], tokenizer)
    assert said(item, tokenizer) == [(context, " was thin.") for context in row["context_options"]]


def test_of_two_sentences_the_good_one_is_gold_and_all_of_it_is_scored(tokenizer: Any, tmp_path: Path) -> None:
    [item] = read(tmp_path, [{"sentence_good": "The dogs bark.", "sentence_bad": "The dogs barks."}], tokenizer)
    assert (item.kind, item.gold) == ("choice", 0)
    assert said(item, tokenizer) == [("", "The dogs bark."), ("", "The dogs barks.")]


@pytest.mark.parametrize(
    ("row", "context", "answer"),
    [
        ({"context": "3 + 4 =", "continuation": " 7"}, "3 + 4 =", " 7"),
        ({"Body": "Ann has 3 figs.", "Question": "How many?", "Answer": 3.0}, "Ann has 3 figs. How many?", " 3"),
        ({"input": "Is ice cold?", "target": "Yes"}, "Is ice cold?", " Yes"),
    ],
)
def test_an_exact_answer_is_one_row(row: dict[str, Any], context: str, answer: str, tokenizer: Any, tmp_path: Path) -> None:
    [item] = read(tmp_path, [row], tokenizer)
    assert (item.kind, item.gold, said(item, tokenizer)) == ("exact", 0, [(context, answer)])


def test_a_conversation_is_scored_token_by_token(tokenizer: Any, tmp_path: Path) -> None:
    turns = [("human", "the cat"), ("gpt", "the mat"), ("human", "the dog"), ("gpt", "the fox")]
    [item] = read(tmp_path, [{"conversations": [{"from": role, "value": text} for role, text in turns]}], tokenizer)
    assert item.kind == "tokens"
    assert said(item, tokenizer)[0][1] == " the mat</s> the fox</s>"


def test_items_are_named_by_their_place(tokenizer: Any, tmp_path: Path) -> None:
    row = json.dumps({"input": "a", "target": "b"})
    assert [item.item_id for item in read(tmp_path, f"{row}\n\n{row}", tokenizer, name="x.jsonl")] == ["x.jsonl:1", "x.jsonl:3"]
    assert [item.item_id for item in read(tmp_path, f"[{row}, {row}]", tokenizer)] == ["set.json:1", "set.json:2"]


def test_the_first_items_are_taken(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"input": str(number), "target": "b"} for number in range(10)]
    assert read(tmp_path, rows, tokenizer, max_items=4) == read(tmp_path, rows, tokenizer)[:4]


def test_a_context_too_long_loses_its_beginning(tokenizer: Any, tmp_path: Path) -> None:
    [item] = read(tmp_path, [{"input": "one " * 100 + "the cat sat on", "target": "the mat"}], tokenizer, max_length=10)
    [(context, answer)] = said(item, tokenizer)
    assert answer == " the mat" and context.endswith("sat on")
    assert len(item.rows[0].input_ids) == 10


def test_an_item_that_does_not_fit_is_left_out_whole(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"query": "q", "choices": ["the cat", answer], "gold": 0} for answer in ("the mat", "the fox " * 20, "the dog")]
    assert [item.item_id for item in read(tmp_path, rows, tokenizer, max_length=12)] == ["set.json:1", "set.json:3"]
    told = r"set\.json: none of its items can be asked \(left out: too_long 1\).*raise data\.max_length \(now 12\)"
    with pytest.raises(DataError, match=told):
        read(tmp_path, rows[1:2], tokenizer, max_length=12)


def test_a_conversation_that_the_template_refuses_is_left_out(make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    refused = [{"role": "user", "content": "<end_of_turn>"}, turns[1]]
    items = read(tmp_path, [{"messages": refused}, {"messages": turns}], make_tokenizer("byte_level", "gemma"))
    assert [item.item_id for item in items] == ["set.json:2"]


def test_rows_that_cannot_be_asked_are_counted_by_kind(
    make_tokenizer: Callable[..., Any], make_new_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    spelled = [{"role": "user", "content": "<end_of_turn>"}, turns[1]]
    system = [{"role": "system", "content": "s"}, *turns[:1], turns[1], *turns]
    long = [{"role": "user", "content": "the cat " * 300}, turns[1]]
    rows = [{"messages": one} for one in (turns, spelled, spelled, long, system, turns)]
    found = read(tmp_path, rows, make_tokenizer("byte_level", "gemma"))
    assert len(found) == 3 and found.left_out == {"control_token": 2, "too_long": 1}
    words = build_word_tokenizer(["is", "ice", "cold", "yes"], 96)
    answers = [{"input": "is ice cold", "target": answer} for answer in ("yes", "perhaps", "yes")]
    found = read(tmp_path, answers, words)
    assert [item.item_id for item in found] == ["set.json:1", "set.json:3"] and found.left_out == {"lossy": 1}
    assert read(tmp_path, answers, words, max_items=1).left_out == {}, "what comes after the last item taken is not looked at"


def instruction(prompt: str, *rules: str, **arguments: Any) -> dict[str, Any]:
    return {"key": 1, "prompt": prompt, "instruction_id_list": list(rules), "kwargs": [arguments, *[{}] * (len(rules) - 1)]}


def test_an_instruction_with_rules_is_asked_through_the_chat_template(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        instruction("the cat", "keywords:existence", "punctuation:no_comma", keywords=["fox"], num_words=None),
        instruction("the dog " * 300, "punctuation:no_comma"),
    ]
    found = read(tmp_path, rows, tokenizer)
    [item] = found
    assert (item.kind, item.rows, found.left_out) == ("rules", (), {"too_long": 1})
    assert item.prompt is not None and item.prompt.rules == (
        Rule("keywords:existence", {"keywords": ["fox"]}),
        Rule("punctuation:no_comma"),
    )
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}], add_generation_prompt=True, tokenize=False)
    assert item.prompt.input_ids == tokenizer(asked, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            instruction("p", "language:response_language"),
            r"set\.json:2: the rule 'language:\S+' is not known.*known: keywords:exis",
        ),
        (instruction("p", "keywords:existence"), r"set\.json:2: keywords:existence needs the argument 'keywords'"),
        ({**instruction("p", "punctuation:no_comma"), "kwargs": []}, r"set\.json:2: kwargs must be a list of 1 objects"),
        ({**instruction("p"), "instruction_id_list": "x"}, r"set\.json:2: instruction_id_list must be a list"),
        (instruction(" ", "punctuation:no_comma"), r"set\.json:2: prompt is empty"),
    ],
)
def test_a_bad_instruction_ends_in_its_place(row: dict[str, Any], told: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        read(tmp_path, [instruction("p", "punctuation:no_comma"), row], tokenizer)


def test_a_conversation_that_ends_in_a_final_answer_is_answered_freely_as_well(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": "4 + 4?", "answer": "it is\n#### 8"}]
    [item] = read(tmp_path, rows, tokenizer)
    assert item.prompt is not None and (item.kind, item.prompt.expected) == ("tokens", "8")
    assert item.rows[0].input_ids[: len(item.prompt.input_ids)] == item.prompt.input_ids
    [other] = read(tmp_path, [{"instruction": "4 + 4?", "output": "it is 8"}], tokenizer)
    assert other.prompt is None


def test_windows_of_a_text_score_every_token_once(tokenizer: Any, tmp_path: Path) -> None:
    text = "the quick brown fox\n\njumps over 😀 the lazy dog. " * 20
    items = read(tmp_path, text, tokenizer, max_length=16, name="set.txt")
    tokens = [token for item in items for token in item.rows[0].input_ids[1:]]
    assert tokens == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(item.rows[0].is_target == [False] + [True] * (len(item.rows[0].input_ids) - 1) for item in items)
    assert all(len(item.rows[0].input_ids) <= 16 for item in items)
    assert items[1].item_id == "set.txt:window2"
    assert {item.kind for item in items} == {"text"}


@pytest.mark.parametrize("max_length", [96, 20])
def test_targets_of_the_embedded_sets_have_their_laws(max_length: int, tmp_path: Path) -> None:
    world = WorldParams(num_train_examples=3, num_validation_examples=3, num_test_examples=3, num_ood_items_per_task=5)
    write_world(tmp_path, world)
    tokenizer = build_word_tokenizer(EmbeddedWorld(world).vocabulary(), 96)
    for file in name_ood_files(tmp_path / "ood").values():
        for item in read_ood_set(file, tokenizer, max_length, 100):
            [row] = item.rows
            targets = [token for token, is_target in zip(row.input_ids, row.is_target, strict=True) if is_target]
            assert row.laws is not None
            assert all(law[token] > 0 for law, token in zip(row.laws, targets, strict=True))


def test_a_bad_item_ends_in_its_place(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"query": "q", "choices": ["a", "b"], "gold": 0}, {"query": "q", "choices": ["a", "b"], "gold": 5}]
    with pytest.raises(DataError, match=r"set\.json:2: gold must be a number from 0 to 1, found 5"):
        read(tmp_path, rows, tokenizer)


def test_an_empty_text_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set\.txt is empty"):
        read(tmp_path, "\n \n", tokenizer, name="set.txt")


def test_every_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("arc.json", "arc.jsonl", "icl/arc.json", "icl/piqa.jsonl", "text.txt"):
        write_text(tmp_path / name, "x")
    named = name_ood_files(tmp_path)
    assert list(named) == ["arc.json", "arc.jsonl", "icl/arc", "icl/piqa", "text"]
    assert named["icl/arc"] == tmp_path / "icl" / "arc.json"
    assert list(name_ood_files(tmp_path / "arc.json")) == ["arc"]
