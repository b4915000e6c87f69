"""Laws of the end of turn: a token where the template has one, else a text, and nothing that could not be looked for."""

from collections.abc import Callable
from typing import Any

import pytest

from components.data.end_of_turn import end_of_turn
from components.models import build_word_tokenizer
from tests.components.conftest import FORMATS, KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format_name", FORMATS)
def test_the_end_of_turn_is_one_token_in_every_published_layout(
    format_name: str, kind: str, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(kind, format_name)
    ids, text = end_of_turn(tokenizer)
    assert ids == [tokenizer.convert_tokens_to_ids(FORMATS[format_name].end_of_turn)] and text == ""


def test_a_layout_without_such_a_token_ends_by_its_text(make_new_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_new_tokenizer("byte_level", ())
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' END OF IT\n' }}{% endfor %}"
    assert end_of_turn(tokenizer) == ([], "END OF IT")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
    assert end_of_turn(tokenizer) == ([], "")


def test_a_closed_vocabulary_is_not_asked_to_find_a_text() -> None:
    words = build_word_tokenizer(["question", "answer", "so", "far"], 64)
    words.chat_template = "{% for message in messages %}{{ message['content'] + ' so far ' }}{% endfor %}"
    assert end_of_turn(words) == ([], "")
