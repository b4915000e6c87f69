"""Which tokens are targets: from characters of the text to runs of tokens, and whether these say all that they should.

A token is a target when it ends inside an assistant's span; so one that straddles the prompt's end counts too. An empty token
stands before the word that it belongs to (a lone word boundary of sentencepiece), so it counts where the span begins.
Tokens are looked up by character: two look-ups a turn, not a loop over all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from components.data.chat_text import ChatText, Span, first_lost
from components.data.faults import FaultKind
from components.data.round_trip import round_trip
from components.data.unrenderable import UnrenderableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Run = tuple[int, int]
"""Tokens [begin, end) of one assistant turn."""


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """Tokens of one conversation and the runs of them that are targets."""

    input_ids: list[int]
    runs: list[Run]
    chat: ChatText
    end_of_turn_is_target: bool
    is_covered: bool
    """Each run covers all characters that its turn says."""
    num_turns_cut: int = 0

    def cut(self, num_turns: int) -> "MarkedRow":
        return replace(self, num_turns_cut=num_turns)


def encode_and_mark(chats: Sequence[ChatText], tokenizer: "PreTrainedTokenizerBase") -> list[MarkedRow]:
    """One call of the tokenizer for all of them."""
    if not chats:
        return []
    batch = tokenizer(
        [chat.text for chat in chats],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    encodings = batch.encodings
    assert encodings is not None, "a fast tokenizer is needed"
    return [_mark(ids, encoding, chat) for ids, encoding, chat in zip(batch["input_ids"], encodings, chats, strict=True)]


def refuse_lossy(rows: Sequence[MarkedRow], tokenizer: "PreTrainedTokenizerBase") -> list[UnrenderableError | None]:
    """Of each row why its targets do not decode to what the assistant says; None where they do."""
    trip = round_trip(tokenizer)
    faults: list[UnrenderableError | None] = [None] * len(rows)
    doubtful: list[tuple[int, int, Span]] = []
    for index, row in enumerate(rows):
        for turn, span in enumerate(row.chat.spans):
            if not row.is_covered or not trip.is_certain(row.chat.text[span.text_begin : span.text_end]):
                doubtful.append((index, turn, span))
    runs = [rows[index].input_ids[slice(*rows[index].runs[turn])] for index, turn, _ in doubtful]
    decoded = tokenizer.backend_tokenizer.decode_batch(runs, skip_special_tokens=False) if runs else []
    for (index, turn, span), said in zip(doubtful, decoded, strict=True):
        wanted = trip.comparable(rows[index].chat.text[span.text_begin : span.text_end])
        found = trip.comparable(said)
        if wanted not in found and faults[index] is None:
            faults[index] = UnrenderableError(
                f"the tokens of the assistant's answer {turn + 1} do not decode to it, from {first_lost(wanted, found)} on",
                FaultKind.LOSSY,
            )
    return faults


def _mark(ids: list[int], encoding: Any, chat: ChatText) -> MarkedRow:
    runs = []
    closes, is_covered = True, True
    for span in chat.spans:
        begin = _token_at(encoding, span.begin, len(chat.text), len(ids))
        end = _token_at(encoding, span.end, len(chat.text), len(ids))
        runs.append((begin, max(begin, end)))
        last = encoding.token_to_chars(end - 1)[1] if end > begin else -1
        closes &= span.text_end < span.end == last
        is_covered &= last >= span.text_end
    return MarkedRow(ids, runs, chat, closes, is_covered)


def _token_at(encoding: Any, character: int, num_characters: int, num_tokens: int) -> int:
    """The first token that ends behind this character, or is empty and stands at it."""
    token = None
    while character < num_characters and token is None:
        token = encoding.char_to_token(character)
        character += 1
    if token is None:
        return num_tokens
    stands_at = character - 1
    while token > 0 and tuple(encoding.token_to_chars(token - 1)) == (stands_at, stands_at):
        token -= 1
    return int(token)
