"""Laws of the chat text: the quick way and the turn-by-turn way give the same, whatever the template does."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.data.chat_templates import TEMPLATES
from components.data.chat_text import chat_writer
from components.data.faults import FaultKind
from components.data.rendering import RenderedExample, render, render_batch, render_prompt
from components.data.template_flow import only_places_texts
from components.data.unrenderable import UnrenderableError
from components.models import EMBEDDED_CHAT_TEMPLATE
from tests.components.conftest import FORMATS, KINDS

UNBOUNDED = 1 << 20
Messages = tuple[dict[str, str], ...]
NEXT = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
STOCK = {
    "llama3.1: date, system header always": (
        "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
        "{%- if messages[0]['role'] == 'system' %}{%- set lead = messages[0]['content'] | trim %}"
        "{%- set messages = messages[1:] %}"
        "{%- else %}{%- set lead = '' %}{%- endif %}{{- '[system]\n\nToday: ' + date_string + '\n\n' }}{{- lead }}"
        "{{- eos_token }}"
        "{%- for message in messages %}{%- if not (message.role == 'tool' or 'tool_calls' in message) %}"
        "{{- '[' + message['role'] + ']\n\n' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '[assistant]\n\n' }}{%- endif %}"
    ),
    "phi3: leaves out what the system says, end of sequence at the end only": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "qwen2.5: a system turn of its own where none is given": (
        "{% if messages[0].role != 'system' %}{{ '<|system|>\nYou are of use.<|end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}" + NEXT
    ),
    "mistral: no system turn, no generation prompt": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + eos_token }}"
        "{% else %}{{ raise_exception('user and assistant only') }}{% endif %}{% endfor %}"
    ),
    "says the system's text before the last user turn": (
        "{% set lead = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '<|user|>\n' + lead + m.content + '<|end|>\n' }}"
        "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}" + NEXT
    ),
    "looks at what is said": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if 'sat' in m.content %}{{ 'It sat. ' }}{% endif %}"
        "{{ m.content + '<|end|>\n' }}{% endfor %}" + NEXT
    ),
    "thinks: keeps reasoning in the last turn only": (
        "{% for m in messages %}{% set said = m.content %}{% if m.role == 'assistant' and not loop.last and '</think>' in said %}"
        "{% set said = said.split('</think>')[-1] %}{% endif %}{{ '<|' + m.role + '|>\n' + said + '<|end|>\n' }}{% endfor %}"
        + NEXT
    ),
}
LOOKING = ("looks at what is said", "thinks: keeps reasoning in the last turn only")
TEXTS = (
    "the cat",
    "sat on",
    "",
    " the mat\n",
    "  ",
    "\x1c\u3000jumps\u2028",
    "User: x",
    "a</think>b",
    "{{ x }}",
    "👩‍👩‍👧",
    "مَرْحَبًا",
)


def chat(*texts: str, system: str | None = None) -> Messages:
    roles = ("user", "assistant") * len(texts)
    turns = tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))
    return turns if system is None else ({"role": "system", "content": system}, *turns)


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except UnrenderableError as error:
        return error.kind, str(error)


@pytest.fixture(params=[*STOCK, *FORMATS, *TEMPLATES])
def with_template(request: pytest.FixtureRequest, make_tokenizer: Callable[..., Any]) -> Any:
    name = request.param
    tokenizer = make_tokenizer("byte_level", name if name in FORMATS else "phi3")
    before = tokenizer.chat_template
    tokenizer.chat_template = STOCK.get(name) or TEMPLATES.get(name) or before
    yield tokenizer
    tokenizer.chat_template = before


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=6), st.none() | st.sampled_from(TEXTS))
def test_the_quick_way_writes_what_going_turn_by_turn_writes(with_template: Any, texts: list[str], system: str | None) -> None:
    messages = chat(*texts[: len(texts) // 2 * 2], system=system)
    writer = chat_writer(with_template)
    quick, sure = outcome(lambda: writer.write(messages)), outcome(lambda: writer.write_by_turns(messages))
    if isinstance(quick, tuple) and hasattr(quick, "spans") and hasattr(sure, "spans"):
        assert quick.text == sure.text
        assert [span[:2] for span in quick.spans] == [span[:2] for span in sure.spans]
        for span, other in zip(quick.spans, sure.spans, strict=True):
            assert quick.text[span.text_begin : span.text_end].strip() == sure.text[other.text_begin : other.text_end].strip()
    else:
        assert quick == sure


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("kind", KINDS)
def test_stock_templates_give_targets_that_are_the_answers(name: str, kind: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(kind, "phi3")
    before, tokenizer.chat_template = tokenizer.chat_template, STOCK[name]
    try:
        for messages in (chat("the cat", "the mat"), chat("the cat", "the mat", "a dog", "a fox", system="be brief")):
            example = render(messages, tokenizer, UNBOUNDED)
            said = tokenizer.decode([i for i, is_target in zip(example.input_ids, example.is_target, strict=True) if is_target])
            parts = [part.strip() for part in said.replace("<|endoftext|>", "<|end|>").split("<|end|>")]
            assert parts == [*(m["content"] for m in messages if m["role"] == "assistant"), ""]
            assert example.end_of_turn_is_target
            assert "be brief" in example.text or len(messages) == 2
    finally:
        tokenizer.chat_template = before


def test_reasoning_that_later_turns_strip_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "phi3")
    before, tokenizer.chat_template = tokenizer.chat_template, STOCK[LOOKING[1]]
    try:
        assert render(chat("the cat", "<think>x</think>y"), tokenizer, UNBOUNDED).end_of_turn_is_target
        with pytest.raises(UnrenderableError, match="differently when others follow") as caught:
            render(chat("the cat", "<think>x</think>y", "a", "b"), tokenizer, UNBOUNDED)
        assert caught.value.kind is FaultKind.REFUSED_BY_TEMPLATE
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize("name", ["gemma", "llama3"])
def test_where_there_is_no_system_turn_its_text_stands_before_the_first_users(
    name: str, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer("byte_level", name)
    messages = chat("the cat", "the mat", system="be brief")
    joined = chat("be brief\n\nthe cat", "the mat")
    assert (render(messages, tokenizer, UNBOUNDED) == render(joined, tokenizer, UNBOUNDED)) == (name == "gemma")
    assert (render_prompt(messages[:2], tokenizer) == render_prompt(joined[:1], tokenizer)) == (name == "gemma")


@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_gives_what_its_conversations_give_alone(name: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_fallback", name)
    long = chat(*["the quick brown fox"] * 12)
    chats = [
        chat("the cat", "the mat"),
        long,
        chat("x" + str(tokenizer.eos_token), "y"),
        chat("▁", "a▁b"),
        long[:4],
        chat(*["dog " * 90] * 2),
    ]
    for max_length in (60, 100, UNBOUNDED):
        alone = [outcome(partial(render, messages, tokenizer, max_length)) for messages in chats]
        batch = [
            row if isinstance(row, RenderedExample) else (row.kind, str(row))
            for row in render_batch(chats, tokenizer, max_length)
        ]
        assert batch == alone
    assert {row[0] for row in alone if isinstance(row, tuple)} == {FaultKind.CONTROL_TOKEN, FaultKind.LOSSY}


def test_templates_that_look_at_a_text_are_told_from_those_that_place_it() -> None:
    placing = [*TEMPLATES.values(), EMBEDDED_CHAT_TEMPLATE, *(text for name, text in STOCK.items() if name not in LOOKING)]
    assert all(only_places_texts(template) for template in placing)
    assert not any(only_places_texts(STOCK[name]) for name in LOOKING)


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content | upper }}",
        "{{ m.content | trim('x') }}",
        "{{ m.content.strip('x') }}",
        "{{ m | tojson }}",
        "{{ m.content[:3] }}",
        "{{ m.content | length }}",
        "{% if m.content %}x{% endif %}",
        "{% set c = m.content %}{{ c if c == 'a' else c }}",
        "{% if loop.first %}{% set c = 'a' %}{% else %}{% set c = m.content %}{% endif %}{{ 'x' if c else 'y' }}",
        "{{ m.content ~ m['con' + 'tent'] | upper }}",
        "{% for c in m.content %}{{ c }}{% endfor %}",
        "{% set ns = namespace(c='') %}{% set ns.c = m.content %}{{ ns.c }}",
        "{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(m.content) }}",
        "{% if m in messages[1:] %}x{% endif %}{{ messages }}",
        "{{ m.values() | list }}",
        "{% set get = m.get %}{{ get('content') | upper }}",
        "{{ m['get']('content') | upper }}",
        "{% if loop.previtem is defined and loop.previtem.content == 'a' %}x{% endif %}",
        "{% if loop['nextitem'].content %}x{% endif %}",
        "{% set other = loop %}{{ other.nextitem.content | upper }}",
        "{% if loop.changed(m.content) %}x{% endif %}",
        "{{ m.content or 'x' }}",
        "{{ [m.content] | join }}",
        "{{ '%s' | format(m.content) | upper }}",
        "{{ messages | map(attribute='content') | join }}",
        "{% if m.content is in ['a'] %}x{% endif %}",
        "{{ dict(a=m.content) }}",
    ],
)
def test_whatever_may_depend_on_a_text_counts_as_looking(body: str) -> None:
    assert not only_places_texts("{% for m in messages %}" + body + "{% endfor %}")


def test_a_template_of_another_time_is_another_template(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "phi3")
    before = tokenizer.chat_template
    first = render(chat("the cat", "the mat"), tokenizer, UNBOUNDED)
    try:
        tokenizer.chat_template = TEMPLATES["plain"]
        assert render(chat("the cat", "the mat"), tokenizer, UNBOUNDED).text.startswith("<s>User: the cat")
    finally:
        tokenizer.chat_template = before
    assert render(chat("the cat", "the mat"), tokenizer, UNBOUNDED) == replace(first)
