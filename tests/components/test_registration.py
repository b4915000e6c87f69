"""Laws of what the registry is told: example prompts are questions as a user types them."""

from collections.abc import Callable
from typing import Any

import pytest

from components.data.rendering import render
from components.data.tokenized import TokenizedRow
from components.models import build_word_tokenizer
from components.registration import first_question
from tests.components.conftest import FORMATS, KINDS


def row_of(question: str, tokenizer: Any) -> TokenizedRow:
    texts = (question, "the mat", "and the dog?", "the fox")
    messages = tuple({"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True))
    example = render(messages, tokenizer, 1000)
    return TokenizedRow("a:1", "a", "messages", example.fingerprint, example.input_ids, example.is_target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("question", ["how many eggs do the hens lay?", "你好 😀", "7", "User: two\nlines?"])
def test_an_example_prompt_is_the_first_question_as_typed(
    question: str, name: str, kind: str, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(kind, name)
    assert first_question(row_of(question, tokenizer), tokenizer) == question


def test_an_example_prompt_of_the_embedded_world_is_its_words() -> None:
    tokenizer = build_word_tokenizer("copy s1 s2 the mat and dog? fox".split(), 96)
    assert first_question(row_of("copy s1 s2", tokenizer), tokenizer) == "copy s1 s2"
