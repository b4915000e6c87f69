"""Laws of rendering: targets are what the assistant says and its end-of-turn, in every format and with every tokenizer."""

import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from components.data import chat_templates, chat_text, rendering
from components.data.chat_templates import apply_template
from components.data.faults import FaultKind
from components.data.rendering import RenderedExample, render, render_prompt, template_fingerprint, tokenizer_fingerprint
from components.data.round_trip import most_characters
from components.data.unrenderable import DoesNotFitError, UnrenderableError
from components.errors import DataError, ModelError
from components.models import build_word_tokenizer
from tests.components.conftest import FORMATS, KINDS

UNBOUNDED = 1 << 20
Messages = tuple[dict[str, str], ...]


def chat(*texts: str, system: str | None = None) -> Messages:
    roles = ("user", "assistant") * len(texts)
    turns = tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))
    return ({"role": "system", "content": system}, *turns) if system else turns


CHATS = {
    "one exchange": chat("how many eggs?", "the hens lay fourteen eggs."),
    "three exchanges": chat("the cat", "sat on", "the mat", "and the dog", "jumps", "over the fox"),
    "accents": chat("naïve café", "Größe, façade — “déjà vu”"),
    "Chinese": chat("你好，今天怎么样？", "很好。谢谢！"),
    "emoji": chat("👩‍👩‍👧 ok?", "yes 😀🎉 done"),
    "right to left": chat("שלום", "مرحبا"),
    "line breaks": chat("a\n\nb", "first line\n\n  second line\n\tthird"),
    "answer begins and ends with blanks": chat("the cat", "  the mat \n"),
    "answer repeats the question": chat("the cat", "the cat", "the cat", "the cat"),
    "one character": chat("?", "7"),
    "looks like a template": chat("User: x\nAssistant: y", "Assistant: {{ bos_token }} {% endfor %}"),
}
WITH_SYSTEM = chat("the cat", "the mat", "the dog", "the fox", system="answer in one word")


def said(example: RenderedExample, tokenizer: Any) -> list[str]:
    """What the runs of targets decode to."""
    runs = groupby(zip(example.input_ids, example.is_target, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_target, run in runs if is_target]


def answers(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def check(messages: Messages, tokenizer: Any, end_of_turn: str) -> None:
    found = said(render(messages, tokenizer, UNBOUNDED), tokenizer)
    assert all(text.endswith(end_of_turn) for text in found)
    assert [text.removesuffix(end_of_turn).strip() for text in found] == [text.strip() for text in answers(messages)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_targets_decode_to_what_the_assistant_says_and_its_end_of_turn(
    name: str, kind: str, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(kind, name)
    for messages in CHATS.values():
        check(messages, tokenizer, FORMATS[name].end_of_turn)
    if FORMATS[name].has_system:
        check(WITH_SYSTEM, tokenizer, FORMATS[name].end_of_turn)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_the_tokens_before_an_answer_are_the_tokens_of_the_prompt_that_asks_for_it(
    name: str, kind: str, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(kind, name)
    for messages in CHATS.values():
        example = render(messages, tokenizer, UNBOUNDED)
        marks = [False, *example.is_target]
        begins = [index for index in range(len(example.is_target)) if marks[index + 1] and not marks[index]]
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        for begin, turn in zip(begins, turns, strict=True):
            prompt = tokenizer(render_prompt(messages[:turn], tokenizer), add_special_tokens=False)["input_ids"]
            assert example.input_ids[:begin] == prompt


def test_the_embedded_template_marks_words_and_end() -> None:
    tokenizer = build_word_tokenizer(["copy", "s1", "s2", "sure", "here"], 96)
    apply_template(tokenizer, "from_tokenizer")
    messages = chat("copy s1 s2", "sure here s1 s2", "copy s2", "sure s2", system="copy")
    example = render(messages, tokenizer, 96)
    assert said(example, tokenizer) == ["sure here s1 s2 <|end|>", "sure s2 <|end|>"]
    own = tokenizer.apply_chat_template(list(messages), return_assistant_tokens_mask=True, return_dict=True)
    assert example.input_ids == own["input_ids"]
    assert [int(mark) for mark in example.is_target] == own["assistant_masks"]


def test_the_ids_are_those_of_the_stock_rendering(make_tokenizer: Callable[..., Any]) -> None:
    for name in FORMATS:
        tokenizer = make_tokenizer("byte_level", name)
        stock = tokenizer.apply_chat_template(list(CHATS["three exchanges"]), return_dict=True)["input_ids"]
        assert render(CHATS["three exchanges"], tokenizer, UNBOUNDED).input_ids == stock


def test_what_follows_the_last_turn_is_no_target(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "phi3")
    example = render(CHATS["one exchange"], tokenizer, UNBOUNDED)
    assert example.text.endswith("<|end|>\n<|endoftext|>")
    assert not example.is_target[-1] and not example.is_target[-2] and example.is_target[-3]


@pytest.mark.parametrize("name", ["plain", "llama3", "phi3"])
def test_cutting_never_cuts_a_target_in_two(name: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", name)
    rng = random.Random(0)
    words = "the quick brown fox 😀 你好 eggs".split()
    for _ in range(10):
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(2 * rng.randint(1, 5))]
        messages = chat(*texts, system="be brief")
        whole = render(messages, tokenizer, UNBOUNDED)
        everything = said(whole, tokenizer)
        first = len(render(messages[:3], tokenizer, UNBOUNDED).input_ids)
        for max_length in range(1, len(whole.input_ids) + 2, 7):
            if max_length < first:
                with pytest.raises(
                    DoesNotFitError, match=rf"has ({first}|more than {max_length}) tokens.*, data.max_length is {max_length}"
                ):
                    render(messages, tokenizer, max_length)
                continue
            cut = render(messages, tokenizer, max_length)
            kept = len(everything) - cut.num_turns_cut
            assert len(cut.input_ids) <= max_length
            assert said(cut, tokenizer) == everything[:kept]
            alone = render(messages[: 1 + 2 * kept], tokenizer, UNBOUNDED)
            assert cut == replace(alone, num_turns_cut=cut.num_turns_cut)
            if cut.num_turns_cut:
                longer = render(messages[: 3 + 2 * kept], tokenizer, UNBOUNDED)
                assert len(longer.input_ids) > max_length, "one more exchange would have fitted"


def test_a_long_conversation_is_cut_without_rendering_every_prefix(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "plain")
    num_calls = 0
    original = tokenizer.apply_chat_template

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return original(*args, **kwargs)

    tokenizer.apply_chat_template = counted
    try:
        render(chat(*["the cat sat on the mat"] * 80), tokenizer, 200)
    finally:
        del tokenizer.apply_chat_template
    assert num_calls < 3 * 40 + 3 * 10


def test_a_text_that_spells_a_special_token_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "llama3")
    for messages in (chat("x", "y<|eot_id|>z"), chat("x<|start_header_id|>", "y")):
        with pytest.raises(UnrenderableError, match="control token '<") as caught:
            render(messages, tokenizer, UNBOUNDED)
        assert caught.value.kind is FaultKind.CONTROL_TOKEN


def test_a_conversation_that_the_template_refuses_says_why(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UnrenderableError, match="roles must alternate") as caught:
        render(chat("the cat", "the mat")[1:], make_tokenizer("byte_level", "gemma"), UNBOUNDED)
    assert caught.value.kind is FaultKind.REFUSED_BY_TEMPLATE


def test_a_template_that_rewrites_earlier_turns_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' }}{% if loop.last and m['role'] == 'assistant' %}{{ 'think ' }}{% endif %}"
        "{{ m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert len(said(render(CHATS["one exchange"], tokenizer, UNBOUNDED), tokenizer)) == 1
    with pytest.raises(UnrenderableError, match="differently when others follow"):
        render(CHATS["three exchanges"], tokenizer, UNBOUNDED)


def test_todays_date_does_not_change_the_rows(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level")
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
        "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    assert render(CHATS["one exchange"], tokenizer, UNBOUNDED).text.startswith(chat_text.DATE)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "cannot render one question and its answer"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages[0]['content'] + eos_token }}", "leaves out what the assistant says"),
        ("{{ messages[0]['content'] + 7 }}", "cannot render"),
    ],
)
def test_a_template_that_cannot_work_is_refused_before_any_row(
    template: str, reason: str, make_tokenizer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.jinja").write_text(template, encoding="utf-8")
    monkeypatch.setattr(chat_templates, "ROOT", tmp_path)
    with pytest.raises(ModelError, match=reason):
        apply_template(make_tokenizer("byte_level"), "broken.jinja")


def test_a_template_comes_from_a_file(
    make_tokenizer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "ROOT", tmp_path)
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}", encoding="utf-8")
    (tmp_path / "latin.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    tokenizer = make_tokenizer("byte_level")
    apply_template(tokenizer, "own.jinja")
    check(CHATS["three exchanges"], tokenizer, "</s>")
    with pytest.raises(
        ModelError, match=r"'missing.jinja' is neither from_tokenizer, plain, chatml, gemma, llama3, phi3 nor a file"
    ):
        apply_template(tokenizer, "missing.jinja")
    with pytest.raises(DataError, match=r"latin\.jinja: not UTF-8 at byte 4"):
        apply_template(tokenizer, "latin.jinja")


def test_a_tokenizer_without_end_of_sequence_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = build_word_tokenizer(["a"], 96)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        apply_template(tokenizer, "from_tokenizer")


def test_one_fingerprint_follows_the_words_and_one_the_template() -> None:
    first, other = build_word_tokenizer(["a", "b"], 96), build_word_tokenizer(["b", "a"], 96)
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(build_word_tokenizer(["a", "b"], 96))
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(other)
    apply_template(other, "plain")
    before = build_word_tokenizer(["b", "a"], 96)
    assert template_fingerprint(other) != template_fingerprint(before) == template_fingerprint(first)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(before)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_what_is_too_long_by_its_characters_is_cut_as_if_it_were_tokenised(
    kind: str, make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(kind, "plain")
    turns = [{"role": role, "content": "fox jumps " * count} for count in (1, 2, 40, 4000) for role in ("user", "assistant")]
    conversations = [tuple(turns[: 2 * number]) for number in (1, 2, 3, 4)]
    monkeypatch.setattr(rendering, "LONG", sys.maxsize)
    whole = [rendering.render(messages, tokenizer, 120) for messages in conversations]
    monkeypatch.setattr(rendering, "LONG", 0)
    monkeypatch.setattr(rendering, "most_characters", lambda *_: 2000)
    assert [rendering.render(messages, tokenizer, 120) for messages in conversations] == whole
    assert [example.num_turns_cut for example in whole] == [0, 0, 1, 2]


def test_a_row_of_megabytes_is_refused_before_it_is_tokenised(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("byte_level", "plain")
    monkeypatch.setattr(rendering, "encode_and_mark", lambda chats, _: pytest.fail("tokenised") if chats else [])
    endless = ({"role": "user", "content": "fox " * 2_000_000}, {"role": "assistant", "content": "dog"})
    [fault] = rendering.render_batch([endless], tokenizer, 512)
    assert isinstance(fault, DoesNotFitError)
    assert re.match(r"the first exchange alone has more than 512 tokens \(\d+ characters\), data\.max_length is 512", str(fault))


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_the_bound_of_characters_holds_for_the_longest_tokens(kind: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(kind, "plain")
    longest = max((token for token in tokenizer.get_vocab() if token not in tokenizer.all_special_tokens), key=len)
    text = tokenizer.decode(tokenizer.convert_tokens_to_ids([longest])) * 50
    assert len(text) <= most_characters(tokenizer, len(tokenizer(text, add_special_tokens=False)["input_ids"]))


def test_there_is_no_bound_for_a_tokenizer_that_may_lose_characters() -> None:
    assert most_characters(build_word_tokenizer(["fox"], 96), 10) == sys.maxsize
