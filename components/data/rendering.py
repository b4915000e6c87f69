"""Rendering conversations with the model's chat template, and marking which tokens are targets.

A target is a token of an assistant turn, its end-of-turn included. The tokens before the first target are the tokens of the
prompt as it is asked later. Every row that leaves here decodes back: its targets say what the assistant says. A conversation
that cannot be rendered is an UnrenderableError with its kind, and the others of its batch do not suffer from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.artifacts import fingerprint_json, fingerprint_row
from components.data.chat_text import ChatText, ChatWriter, Messages, chat_writer
from components.data.round_trip import most_characters
from components.data.target_marks import MarkedRow, encode_and_mark, refuse_lossy
from components.data.unrenderable import DoesNotFitError, UnrenderableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Result = MarkedRow | UnrenderableError
LONG = 100
"""Characters per token from which on the longest token is asked for: reading a vocabulary costs tenths of seconds."""


@dataclass(frozen=True)
class RenderedExample:
    """T tokens of one conversation; `is_target` is True on assistant tokens; `num_turns_cut` exchanges did not fit."""

    input_ids: list[int]
    is_target: list[bool]
    text: str
    num_turns_cut: int
    end_of_turn_is_target: bool
    """After what the assistant says, every turn has a target that ends it."""

    @property
    def fingerprint(self) -> str:
        return fingerprint_row(self.input_ids, self.is_target)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of vocabulary, merges and added tokens: what an id means."""
    return fingerprint_json(tokenizer.backend_tokenizer.to_str())


def template_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the chat template: what surrounds a turn."""
    return fingerprint_json(tokenizer.chat_template)


def render_prompt(messages: Messages, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Text up to and including the generation prompt of the next assistant turn."""
    return chat_writer(tokenizer).prompt(messages)


def render(messages: Messages, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> RenderedExample:
    """Tokens and target marks; whole exchanges at the end are cut until it fits, a target is never cut in two."""
    (result,) = render_batch([messages], tokenizer, max_length)
    if isinstance(result, UnrenderableError):
        raise result
    return result


def render_batch(
    conversations: Sequence[Messages], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[RenderedExample | UnrenderableError]:
    """`render` of each, with one call of the tokenizer for all (and one for each round of cuts)."""
    return [
        row if isinstance(row, UnrenderableError) else _example(row) for row in mark_batch(conversations, tokenizer, max_length)
    ]


def mark_batch(conversations: Sequence[Messages], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Result]:
    """`render_batch` with the targets as runs of tokens, for those who write them to a table."""
    writer = chat_writer(tokenizer)
    results: dict[int, Result] = {}
    attempts = [_Attempt(index, messages, [len(messages)]) for index, messages in enumerate(conversations)]
    while attempts:
        chats: list[ChatText] = []
        written: list[_Attempt] = []
        for attempt in attempts:
            try:
                chats.append(attempt.write(writer, tokenizer, max_length))
                written.append(attempt)
            except UnrenderableError as fault:
                results[attempt.index] = fault
        attempts = []
        for attempt, row in zip(written, encode_and_mark(chats, tokenizer), strict=True):
            if len(row.input_ids) <= max_length:
                results[attempt.index] = attempt.counted(row)
            elif attempt.shorten(row, max_length):
                attempts.append(attempt)
            else:
                results[attempt.index] = _does_not_fit(len(row.input_ids), max_length)
    return _keep_lossless([results[index] for index in range(len(conversations))], tokenizer)


@dataclass(slots=True)
class _Attempt:
    """A conversation that is cut until it fits: `ends` are the numbers of turns still to try, the longest first."""

    index: int
    messages: Messages
    ends: list[int]

    def write(self, writer: ChatWriter, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> ChatText:
        """What is too long by its characters alone is cut before it is tokenised: a line of 50 MB has minutes of tokens."""
        chat = self._write(writer)
        while len(chat.text) > LONG * max_length and len(chat.text) > (most := most_characters(tokenizer, max_length)):
            ends = zip(self._answers(), chat.spans, strict=False)
            self.ends = [end for end, span in ends if span.end <= most and end < self.ends[0]][::-1]
            if not self.ends:
                raise DoesNotFitError(
                    f"the first exchange alone has more than {max_length} tokens ({chat.spans[0].end} characters), "
                    f"data.max_length is {max_length}"
                )
            chat = self._write(writer)
        return chat

    def _write(self, writer: ChatWriter) -> ChatText:
        end = self.ends[0]
        if end == len(self.messages):
            writer.refuse_unwritable(self.messages)
        return writer.write(self.messages[:end])

    def shorten(self, row: MarkedRow, max_length: int) -> bool:
        """The first k exchanges have about as many tokens alone as within the whole, so most cuts need not be tried. False
        when the first exchange alone was too long."""
        tried = self.ends.pop(0)
        answers = self._answers()
        if tried == len(self.messages):
            ends_of_tokens = [last for _, last in row.runs]
            fitting = [end for end, last in zip(answers, ends_of_tokens, strict=True) if last <= max_length and end < tried]
            self.ends += reversed(fitting)
        if not self.ends and tried != answers[0]:
            self.ends.append(answers[0])
        return bool(self.ends)

    def counted(self, row: MarkedRow) -> MarkedRow:
        end = self.ends[0]
        if end == len(self.messages):
            return row
        answers = self._answers()
        return row.cut(len(answers) - answers.index(end) - 1)

    def _answers(self) -> list[int]:
        """How many turns there are up to each of the assistant's."""
        return [index + 1 for index, message in enumerate(self.messages) if message["role"] == "assistant"]


def _does_not_fit(num_tokens: int, max_length: int) -> DoesNotFitError:
    return DoesNotFitError(f"the first exchange alone has {num_tokens} tokens, data.max_length is {max_length}")


def _keep_lossless(results: list[Result], tokenizer: "PreTrainedTokenizerBase") -> list[Result]:
    faults = iter(refuse_lossy([row for row in results if isinstance(row, MarkedRow)], tokenizer))
    return [row if isinstance(row, UnrenderableError) else next(faults) or row for row in results]


def _example(row: MarkedRow) -> RenderedExample:
    is_target = [False] * len(row.input_ids)
    for begin, end in row.runs:
        is_target[begin:end] = [True] * (end - begin)
    return RenderedExample(row.input_ids, is_target, row.chat.text, row.num_turns_cut, row.end_of_turn_is_target)
