"""Laws of choosing a template: a tokenizer without one gets the layout that its vocabulary was made for, and the user is told."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from components.data.chat_templates import MARKERS, TEMPLATES, apply_template
from components.data.rendering import render

EXCHANGE = ({"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the mat"})


@pytest.mark.parametrize("name", [*MARKERS, "plain"])
def test_a_tokenizer_without_a_template_gets_the_one_of_its_vocabulary_and_the_log_says_why(
    name: str, make_new_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_new_tokenizer("byte_level", MARKERS.get(name, ()))
    with caplog.at_level(logging.WARNING):
        assert apply_template(tokenizer, "from_tokenizer") == name
    assert tokenizer.chat_template == TEMPLATES[name]
    why = MARKERS.get(name, ("no token that begins a turn",))[0]
    assert f"taking {name}" in caplog.text and why in caplog.text and "data.chat_template" in caplog.text


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_named_template_replaces_the_tokenizers_own_and_closes_each_turn(
    name: str, make_new_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_new_tokenizer("byte_level", ())
    tokenizer.chat_template = "{{ raise_exception('own') }}"
    assert apply_template(tokenizer, name) == name
    assert render(EXCHANGE, tokenizer, 1 << 20).end_of_turn_is_target


def test_a_template_of_its_own_stays(make_new_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_new_tokenizer("byte_level", ("<|im_start|>",))
    tokenizer.chat_template = TEMPLATES["plain"]
    assert apply_template(tokenizer, "from_tokenizer") == "from_tokenizer"
    assert tokenizer.chat_template == TEMPLATES["plain"] and not caplog.text


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_layouts_end_a_prompt_without_a_space(name: str, make_new_tokenizer: Callable[..., Any]) -> None:
    from components.data.rendering import render_prompt

    tokenizer = make_new_tokenizer("byte_level", ())
    apply_template(tokenizer, name)
    assert not render_prompt(EXCHANGE[:1], tokenizer).endswith(" ")
