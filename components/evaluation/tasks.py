"""Held-out sets as evaluation items; components.data.held_out lists the formats.

Multiple choice and exact answers are scored after their context, conversations rendered with the chat template token by token,
plain text token by token in windows. Items that do not fit into data.max_length, or that the chat template refuses, are left out.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from components.data.conversations import Conversation
from components.data.embedded_files import read_laws
from components.data.held_out import Question, read_ood_items
from components.data.json_rows import read_utf8
from components.data.rendering import render
from components.data.unrenderable import UnrenderableError
from components.errors import DataError
from components.evaluation.items import EvaluationItem, ItemRow, continuation_row, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_ood_set(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int, max_items: int) -> list[EvaluationItem]:
    """The first `max_items` items of one file that can be scored."""
    read = _text_windows if file.suffix == ".txt" else _json_items
    taken = list(islice(read(file, tokenizer, max_length), max_items))
    if not taken:
        raise DataError(f"{file}: no item fits into data.max_length {max_length}. Raise it in params.yaml, or remove the set")
    return taken


def _json_items(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[EvaluationItem]:
    laws = read_laws(file)
    for index, item in enumerate(read_ood_items(file)):
        try:
            if isinstance(item, Question):
                yield _question(item, tokenizer, max_length)
            else:
                yield _conversation(item, None if laws is None else laws[index], tokenizer, max_length)
        except UnrenderableError:
            continue


def _question(item: Question, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> EvaluationItem:
    rows = tuple(continuation_row(context, continuation, tokenizer, max_length) for context, continuation in item.pairs)
    return EvaluationItem(item.row_id, "choice" if len(rows) > 1 else "exact", rows, item.gold)


def _conversation(
    item: Conversation, laws: list[dict[str, float]] | None, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> EvaluationItem:
    rendered = render(item.messages, tokenizer, max_length)
    kept = None if laws is None else [_law_of_ids(law, tokenizer) for law in laws[: sum(rendered.is_target)]]
    return EvaluationItem(item.row_id, "tokens", (ItemRow(rendered.input_ids, rendered.is_target, kept),))


def _law_of_ids(law: dict[str, float], tokenizer: "PreTrainedTokenizerBase") -> dict[int, float]:
    return {token_id(word, tokenizer): probability for word, probability in law.items()}


def token_id(word: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    number = tokenizer.convert_tokens_to_ids(word)
    assert isinstance(number, int)
    return number


def _text_windows(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[EvaluationItem]:
    ids = tokenizer(read_utf8(file), add_special_tokens=False, verbose=False)["input_ids"]
    for number, begin in enumerate(range(0, len(ids), max_length - 1), start=1):
        window = ids[begin : begin + max_length - 1]
        row = ItemRow([start_token(tokenizer), *window], [False] + [True] * len(window))
        yield EvaluationItem(f"{file.name}:window{number}", "tokens", (row,))
