"""Rendering a conversation with the model's chat template, and marking which tokens are targets.

A target is a token of an assistant turn, its end-of-turn included. The marks come from rendering the conversation turn by
turn: what the template adds after the generation prompt is the assistant's. So they are right for stock templates too, whose
own assistant masks are all zero because they lack `{% generation %}`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from components.artifacts import ROOT, fingerprint_json, fingerprint_row
from components.data.sources import Message
from components.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}"
        "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}


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


class DoesNotFitError(DataError):
    """Not even the first exchange fits into data.max_length."""


def apply_template(tokenizer: "PreTrainedTokenizerBase", choice: str) -> None:
    """Give the tokenizer the template that `data.chat_template` names; refuse a tokenizer left without one."""
    if choice in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[choice]
    elif choice != "from_tokenizer":
        file = ROOT / choice
        if not file.is_file():
            raise ModelError(f"data.chat_template: {choice!r} is neither from_tokenizer, {', '.join(TEMPLATES)} nor a file")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template. "
            "Choose one in params.yaml, for example: dvc exp run -S data.chat_template=plain"
        )
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token; set eos_token in tokenizer_config.json"
        )


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Vocabulary, merges, added tokens and chat template in one fingerprint."""
    return fingerprint_json({"tokenizer": tokenizer.backend_tokenizer.to_str(), "template": tokenizer.chat_template})


def render_prompt(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Text up to and including the generation prompt of the next assistant turn."""
    return _template(messages, tokenizer, add_generation_prompt=True)


def render(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> RenderedExample:
    """Tokens and target marks; whole exchanges at the end are cut until it fits, a target is never cut in two."""
    ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
    for num_cut, end in enumerate(reversed(ends)):
        text, spans = _assistant_spans(messages[:end], tokenizer)
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        input_ids = list(encoding["input_ids"])
        if len(input_ids) <= max_length:
            is_target = _mark_targets(encoding["offset_mapping"], spans)
            return RenderedExample(input_ids, is_target, text, num_cut)
    raise DoesNotFitError(f"the first exchange alone has {len(input_ids)} tokens, data.max_length is {max_length}")


def _assistant_spans(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and the character span of every assistant turn (end-of-turn included, line break after it not)."""
    text = _template(messages, tokenizer)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render_prompt(messages[:index], tokenizer)
        upto = _template(messages[: index + 1], tokenizer)
        if not (text.startswith(before) and text.startswith(upto)):
            raise DataError(
                "the chat template rewrites earlier turns when later ones follow, so targets cannot be marked; choose another"
            )
        spans.append((len(before), len(upto.rstrip("\n"))))
    return text, spans


def _mark_targets(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """A token is a target when it ends inside a span and is not empty (a token that straddles the prompt's end counts too)."""
    is_target = []
    position = 0
    for start, end in offsets:
        while position < len(spans) and start >= spans[position][1]:
            position += 1
        is_target.append(end > start and position < len(spans) and spans[position][0] < end and end <= spans[position][1])
    return is_target


def _template(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool = False) -> str:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from None
    assert isinstance(text, str)
    return text


def template_path(choice: str) -> Path | None:
    """The file that `data.chat_template` points to, if it is one."""
    return None if choice == "from_tokenizer" or choice in TEMPLATES else ROOT / choice
