"""Rendering a conversation with the model's chat template, and marking which tokens are targets.

A target is a token of an assistant turn, its end-of-turn included. The marks come from rendering the conversation turn by
turn: what the template adds after the generation prompt is the assistant's. So they are right for stock templates too, whose
own assistant masks are all zero because they lack `{% generation %}`. The tokens before the first target are the tokens of the
prompt as it is asked later.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from components.artifacts import ROOT, fingerprint_json, fingerprint_row
from components.data.conversations import Message
from components.data.json_rows import read_utf8
from components.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}"
        "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "chatml": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
"""A prompt must not end with a space: tokenizers keep a space with the word after it, which is the first target."""
DATE = "26 Jul 2024"
"""Templates that tell the model today's date (LLaMA 3.1) get this one: the same rows must give the same bytes tomorrow."""
PROBE = ({"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"})


@dataclass(frozen=True)
class RenderedExample:
    """T tokens of one conversation; `is_target` is True on assistant tokens; `num_turns_cut` exchanges did not fit."""

    input_ids: list[int]
    is_target: list[bool]
    text: str
    num_turns_cut: int

    @property
    def fingerprint(self) -> str:
        return fingerprint_row(self.input_ids, self.is_target)


class UnrenderableError(DataError):
    """This conversation cannot be rendered; the message is the reason, without a place."""


class DoesNotFitError(UnrenderableError):
    """Not even the first exchange fits into data.max_length."""


def apply_template(tokenizer: "PreTrainedTokenizerBase", choice: str) -> None:
    """Give the tokenizer the template that `data.chat_template` names; refuse a tokenizer left without one."""
    if choice in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[choice]
    elif choice != "from_tokenizer":
        file = ROOT / choice
        if not file.is_file():
            raise ModelError(f"data.chat_template: {choice!r} is neither from_tokenizer, {', '.join(TEMPLATES)} nor a file")
        tokenizer.chat_template = read_utf8(file)
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template. "
            "Choose one in params.yaml, for example: dvc exp run -S data.chat_template=plain"
        )
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token; set eos_token in tokenizer_config.json"
        )
    try:
        text, [(begin, end)] = _assistant_spans(PROBE, tokenizer)
    except UnrenderableError as error:
        raise ModelError(f"data.chat_template: {choice!r} cannot render one question and its answer: {error}") from None
    if PROBE[1]["content"] not in text[begin:end]:
        raise ModelError(f"data.chat_template: {choice!r} leaves out what the assistant says: {text!r}")


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of vocabulary, merges and added tokens: what an id means."""
    return fingerprint_json(tokenizer.backend_tokenizer.to_str())


def template_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the chat template: what surrounds a turn."""
    return fingerprint_json(tokenizer.chat_template)


def render_prompt(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Text up to and including the generation prompt of the next assistant turn."""
    return _template(messages, tokenizer, add_generation_prompt=True)


def render(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> RenderedExample:
    """Tokens and target marks; whole exchanges at the end are cut until it fits, a target is never cut in two."""
    _refuse_control_tokens(messages, tokenizer)
    ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
    whole, span_ends = _render_whole(messages, tokenizer)
    if len(whole.input_ids) <= max_length:
        return whole
    # The first k exchanges have about as many tokens alone as within the whole, so most cuts need not be rendered.
    kept = [end for end, num_tokens in zip(ends, span_ends, strict=True) if num_tokens <= max_length and end < len(messages)]
    for end in reversed(kept):
        cut, _ = _render_whole(messages[:end], tokenizer)
        if len(cut.input_ids) <= max_length:
            return replace(cut, num_turns_cut=len(ends) - ends.index(end) - 1)
    first, _ = _render_whole(messages[: ends[0]], tokenizer)
    raise DoesNotFitError(f"the first exchange alone has {len(first.input_ids)} tokens, data.max_length is {max_length}")


def _render_whole(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase") -> tuple[RenderedExample, list[int]]:
    """All turns, however long; and how many tokens stand before the end of each assistant turn."""
    text, spans = _assistant_spans(messages, tokenizer)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoding["offset_mapping"]
    counts = [sum(stop <= end for _, stop in offsets) for _, end in spans]
    return RenderedExample(list(encoding["input_ids"]), _mark_targets(offsets, spans), text, 0), counts


def _assistant_spans(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and the character span of every assistant turn (end-of-turn included, line break after it not)."""
    text = _template(messages, tokenizer)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render_prompt(messages[:index], tokenizer)
        upto = _closed_turns(messages[: index + 1], text, tokenizer)
        if not (text.startswith(before) and text.startswith(upto)):
            raise UnrenderableError("the chat template writes a turn differently when others follow, so targets cannot be marked")
        spans.append((len(before), len(upto)))
    return text, spans


def _closed_turns(messages: tuple[Message, ...], whole: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """These turns up to the end-of-turn of the last one: without line breaks, and without an end of sequence that is written
    after the last turn of a conversation only (Phi-3), so that no turn ends otherwise than the others."""
    text = _template(messages, tokenizer)
    eos = str(tokenizer.eos_token)
    if text.endswith(eos):
        longer = render_prompt(messages, tokenizer) if text == whole else whole
        if not longer.startswith(text):
            text = text.removesuffix(eos)
    return text.rstrip("\n")


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content)


def _refuse_control_tokens(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Text that spells a special token would become that token: it would end its turn, or begin another."""
    for message in messages:
        for token in _control_tokens(tokenizer):
            if token in message["content"]:
                raise UnrenderableError(f"the {message['role']}'s text holds the special token {token!r}")


def _mark_targets(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """A token is a target when it ends inside a span; so one that straddles the prompt's end counts too. An empty token stands
    before the word that it belongs to (a lone word boundary of sentencepiece), so it counts where the span begins."""
    is_target = []
    position = 0
    for start, end in offsets:
        while position < len(spans) and start >= spans[position][1]:
            position += 1
        first, last = spans[position] if position < len(spans) else (end, -1)
        is_target.append(end <= last and (end > first or start == first))
    return is_target


def _template(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool = False) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise UnrenderableError(f"the chat template refuses the conversation: {error}") from None
    assert isinstance(text, str)
    return text
