"""Laws of final answers: the last `####` counts, numbers are numbers, and the prompt ends where the last answer begins."""

from collections.abc import Callable
from typing import Any

import pytest

from components.data.rendering import render, render_prompt
from components.evaluation.answers import answer_items, final_answer, is_same_answer, prompt_of_row
from components.evaluation.items import EvaluationItem, ItemRow, Prompt
from components.params import EvaluationParams
from tests.components.evaluation.conftest import scripted_model


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4 + 4 = 8\n#### 8", "8"),
        ("#### 3, no:\n#### 1,000  ", "1,000"),
        ("####7\nand more", "7"),
        ("#### sure thing\n", "sure thing"),
        ("it is 8", None),
        ("#### ", None),
        ("#### 5\n####", None),
        ("", None),
    ],
)
def test_the_last_final_answer_counts(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("said", "expected"),
    [("1,000", "1000"), ("1000.0", "1,000"), ("$18", "18"), ("18 dollars", "18"), ("18.", "18"), ("-5", "−5"), ("+3", "3"),
     ("-$2.50", "-2.5"), ("$-2.5", "-2.50"), (".5", "0.5"), (" yes ", "yes"), ("007", "7")],
)  # fmt: skip
def test_answers_that_are_the_same(said: str, expected: str) -> None:
    assert is_same_answer(said, expected)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("18", "180"), ("1,00", "100"), ("5", "-5"), ("1.8", "18"), ("about 18", "18"), (None, "18"), ("yes", "no"), ("yes", "5"),
     ("12345678901234567891", "12345678901234567890")],
)  # fmt: skip
def test_answers_that_are_not(said: str | None, expected: str) -> None:
    assert not is_same_answer(said, expected)


@pytest.mark.parametrize("format_name", ["plain", "gemma", "llama3", "chatml", "phi3"])
def test_what_is_asked_is_the_conversation_up_to_its_last_answer(format_name: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", format_name)
    asked = ({"role": "user", "content": "2 3"}, {"role": "assistant", "content": "#### 6"}, {"role": "user", "content": "4 4"})
    rendered = render((*asked, {"role": "assistant", "content": "8 eggs\n#### 1,6"}), tokenizer, 1000)
    prompt = prompt_of_row(ItemRow(rendered.input_ids, rendered.is_target), tokenizer)
    assert prompt is not None and prompt.expected == "1,6"
    assert tokenizer.decode(prompt.input_ids).strip() == render_prompt(asked, tokenizer).strip()


def test_a_conversation_without_a_final_answer_is_not_asked(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "plain")
    turns = ({"role": "user", "content": "#### 5"}, {"role": "assistant", "content": "the fox"})
    rendered = render(turns, tokenizer, 100)
    assert prompt_of_row(ItemRow(rendered.input_ids, rendered.is_target), tokenizer) is None
    assert prompt_of_row(ItemRow([1, 2], [False, False]), tokenizer) is None


def test_items_with_a_prompt_are_answered_and_the_others_are_not(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "plain")
    cat, mat = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" cat", " mat"))
    model = scripted_model({cat: mat, mat: tokenizer.eos_token_id}, len(tokenizer))
    items = [EvaluationItem(str(number), "rules", (), prompt=prompt) for number, prompt in enumerate((None, Prompt([cat])))]
    none, said = answer_items(model, tokenizer, items, EvaluationParams(max_new_tokens=4), "set")
    assert none is None and said is not None and said.text == "mat"
