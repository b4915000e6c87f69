"""The text of a conversation in the tokenizer's chat template, and the characters of it that are the assistant's.

An assistant's turn is what the template adds after the generation prompt. The sure way to find it is to render the conversation
turn by turn; that is right for stock templates too, whose own assistant masks are all zero because they lack
`{% generation %}`. It is taken once per order of roles, with placeholders as texts: the pieces between them are the same for
every conversation of these roles. Where the template may look at what is said, each conversation is rendered and
compared, and goes the sure way when it is written differently.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from jinja2.exceptions import TemplateError

from components.data.conversations import Message
from components.data.faults import FaultKind
from components.data.template_flow import only_places_texts
from components.data.unrenderable import UnrenderableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"
"""Templates that tell the model today's date (LLaMA 3.1) get this one: the same rows must give the same bytes tomorrow."""
BEFORE, AFTER = "\n \t", "\t \n"
"""Around a placeholder; what is left of them tells what the template trims."""
MAX_LAYOUTS = 1024
_MARKER = re.compile(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>")
"""A template may make others from parts (`'<|' + role + '|>'`): those are tokens of the models that they are for."""
Messages = tuple[Message, ...]


class Span(NamedTuple):
    """Characters of one assistant turn (end-of-turn included, line break after it not) and, within, of what is said."""

    begin: int
    end: int
    text_begin: int
    text_end: int


class ChatText(NamedTuple):
    text: str
    spans: list[Span]


class Slot(NamedTuple):
    """Where the text of turn `turn` goes. `before` and `after`: characters of the surrounding pieces that belong to the
    assistant's turn; -1 where it is not the assistant's."""

    turn: int
    trims_begin: bool
    trims_end: bool
    before: int
    after: int

    def trimmed(self, text: str) -> str:
        if self.trims_begin:
            return text.strip() if self.trims_end else text.lstrip()
        return text.rstrip() if self.trims_end else text


@dataclass(frozen=True)
class Layout:
    """How the template writes conversations of one order of roles: piece, text, piece … text, piece."""

    pieces: tuple[str, ...]
    slots: tuple[Slot, ...]

    def write(self, messages: Messages) -> ChatText:
        parts = [self.pieces[0]]
        position = len(parts[0])
        spans = []
        for slot, piece in zip(self.slots, self.pieces[1:], strict=True):
            text = slot.trimmed(messages[slot.turn]["content"])
            end = position + len(text)
            if slot.before >= 0:
                spans.append(Span(position - slot.before, end + slot.after, position, end))
            parts += text, piece
            position = end + len(piece)
        return ChatText("".join(parts), spans)


class ChatWriter:
    """Writes conversations with one tokenizer's template, and remembers its layouts."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._layouts: dict[tuple[str, ...], Layout | None] = {}
        self._places_only = only_places_texts(_source(tokenizer))
        control = sorted(_control_texts(tokenizer), key=len, reverse=True)
        self._control_tokens = re.compile("|".join(map(re.escape, control)) or "(?!)")
        self._has_system_turn = True
        self._has_system_turn = self._writes_system_turns()

    def refuse_unwritable(self, messages: Messages) -> None:
        """Text that spells a special token would become that token: it would end its turn, or begin another. Half a
        surrogate pair is no character: it has no UTF-8."""
        for message in messages:
            text = message["content"]
            if found := self._control_tokens.search(text):
                reason = f"the {message['role']}'s text holds the control token {found.group()!r}"
                raise UnrenderableError(reason, FaultKind.CONTROL_TOKEN)
            if not text.isascii() and (half := re.search("[\ud800-\udfff]", text)):
                reason = f"the {message['role']}'s text holds half of a surrogate pair, U+{ord(half.group()):X}"
                raise UnrenderableError(reason, FaultKind.LOSSY)

    def write(self, messages: Messages) -> ChatText:
        """The same as `write_by_turns`, without running the template where its layout is known."""
        messages = self.fold_system(messages)
        roles = tuple([message["role"] for message in messages])
        if roles not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[roles] = self._learn(roles)
        layout = self._layouts[roles]
        if layout is None:
            return self.write_by_turns(messages)
        written = layout.write(messages)
        if self._places_only or written.text == self.template(messages):
            return written
        return self.write_by_turns(messages)

    def write_by_turns(self, messages: Messages) -> ChatText:
        """What the template adds after each generation prompt is the assistant's."""
        messages = self.fold_system(messages)
        text = self.template(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.prompt(messages[:index])
            upto = self._closed_turns(messages[: index + 1], text)
            if not (text.startswith(before) and text.startswith(upto)):
                raise UnrenderableError(
                    "the chat template writes a turn differently when others follow, so targets cannot be marked"
                )
            begin, end = _find(message["content"], text, len(before), len(upto), index)
            spans.append(Span(len(before), len(upto), begin, end))
        return ChatText(text, spans)

    def prompt(self, messages: Messages) -> str:
        """Text up to and including the generation prompt of the next assistant turn."""
        return self.template(self.fold_system(messages), add_generation_prompt=True)

    def fold_system(self, messages: Messages) -> Messages:
        """Where the template has no system turn (it refuses it, or leaves out what it says), its text stands before the first
        user's, an empty line between them."""
        if self._has_system_turn or len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
            return messages
        return ({"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:])

    def template(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise UnrenderableError(f"the chat template refuses the conversation: {error}") from None
        assert isinstance(text, str)
        return text

    def _writes_system_turns(self) -> bool:
        said = ("instruction of the system", "question of the user", "answer of the assistant")
        roles = ("system", "user", "assistant")
        try:
            text = self.template(tuple({"role": role, "content": text} for role, text in zip(roles, said, strict=True)))
        except UnrenderableError:
            return False
        return said[0] in text

    def _closed_turns(self, messages: Messages, whole: str) -> str:
        """These turns up to the end-of-turn of the last one: without line breaks, and without an end of sequence that is
        written after the last turn of a conversation only (Phi-3), so that no turn ends otherwise than the others."""
        text = self.template(messages)
        eos = str(self._tokenizer.eos_token)
        if text.endswith(eos):
            longer = self.prompt(messages) if text == whole else whole
            if not longer.startswith(text):
                text = text.removesuffix(eos)
        return text.rstrip("\n")

    def _learn(self, roles: Sequence[str]) -> Layout | None:
        """None where these roles are refused, or a text stands in it twice, never, changed, or at the edge of its turn."""
        cores = [f"Text{turn}Here" for turn in range(len(roles))]
        messages = tuple({"role": role, "content": f"{BEFORE}{core}{AFTER}"} for role, core in zip(roles, cores, strict=True))
        try:
            text, spans = self.write_by_turns(messages)
        except UnrenderableError:
            return None
        return _layout(text, spans, roles, cores)


def _source(tokenizer: "PreTrainedTokenizerBase") -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        return ""


def _control_texts(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """What would open or close a turn if a text spelled it: special tokens, other added tokens that the template writes, and
    markers of the template that are no tokens of this tokenizer (`chatml` for a model that was not made for it)."""
    source = _source(tokenizer)
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special or token.content in source}
    return {text for text in added | set(_MARKER.findall(source)) if text}


def _find(said: str, text: str, begin: int, end: int, turn: int) -> tuple[int, int]:
    """Where an assistant's words stand within its turn; all of it at least that a template may trim."""
    for wanted in (said, said.strip()):
        place = text.find(wanted, begin, end)
        if place >= 0:
            return place, place + len(wanted)
    lost = first_lost(said.strip(), text[begin:end])
    raise UnrenderableError(f"the chat template changes what the assistant says in turn {turn + 1}, from {lost}", FaultKind.LOSSY)


def first_lost(wanted: str, found: str) -> str:
    """The first character of `wanted` that `found` has not, named for people."""
    low, high = 0, len(wanted) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if wanted[: middle + 1] in found else (low, middle)
    return f"character {low + 1}: {wanted[low]!r} (U+{ord(wanted[low]):04X})"


def _layout(text: str, spans: Sequence[Span], roles: Sequence[str], cores: Sequence[str]) -> Layout | None:
    if any(text.count(core) != 1 for core in cores):
        return None
    pieces, slots = [], []
    position = 0
    waiting = list(spans)
    for turn, (role, core) in enumerate(zip(roles, cores, strict=True)):
        begin = text.index(core)
        end = begin + len(core)
        keeps_begin, keeps_end = text[:begin].endswith(BEFORE), text[end:].startswith(AFTER)
        if (text[begin - 1 : begin] == BEFORE[-1]) != keeps_begin or (text[end : end + 1] == AFTER[0]) != keeps_end:
            return None
        begin -= keeps_begin * len(BEFORE)
        end += keeps_end * len(AFTER)
        if begin < position:
            return None
        before, after = -1, -1
        if role == "assistant":
            span = waiting.pop(0)
            before, after = begin - span.begin, span.end - end
            if not (0 <= before <= begin - position and after >= 0):
                return None
        pieces.append(text[position:begin])
        slots.append(Slot(turn, not keeps_begin, not keeps_end, before, after))
        position = end
    pieces.append(text[position:])
    if any(slot.after > len(piece) for slot, piece in zip(slots, pieces[1:], strict=True)):
        return None
    return Layout(tuple(pieces), tuple(slots))


@lru_cache(maxsize=8)
def _writer(tokenizer: "PreTrainedTokenizerBase", key: str) -> ChatWriter:
    return ChatWriter(tokenizer)


def chat_writer(tokenizer: "PreTrainedTokenizerBase") -> ChatWriter:
    """One per tokenizer and state of it: another template or special token makes another writer."""
    state = (tokenizer.chat_template, tokenizer.special_tokens_map, len(tokenizer))
    return _writer(tokenizer, repr(state))
