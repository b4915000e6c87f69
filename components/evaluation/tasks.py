"""Held-out sets as evaluation items; components.data.held_out lists the formats.

Multiple choice and exact answers are scored after their context, conversations rendered with the chat template token by token,
plain text token by token in windows; instructions with rules are answered freely, and so are conversations that end in
`#### <answer>`. A row that cannot be asked (too long for data.max_length, refused by the chat template, not to be said with the
tokenizer) is left out and counted by its kind.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from components.data.conversations import Conversation
from components.data.embedded_files import read_laws
from components.data.held_out import Instruction, Item, Question, read_ood_items
from components.data.json_rows import read_utf8
from components.data.rendering import render, render_prompt
from components.data.unrenderable import DoesNotFitError, UnrenderableError
from components.errors import DataError
from components.evaluation.answers import prompt_of_row
from components.evaluation.items import EvaluationItem, EvaluationSet, ItemRow, Prompt, continuation_row, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Laws = list[dict[str, float]]


def read_ood_set(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int, max_items: int) -> EvaluationSet:
    """The first `max_items` items of one file that can be asked."""
    read = _text_windows if file.suffix == ".txt" else _json_items
    taken: list[EvaluationItem] = []
    left_out: Counter[str] = Counter()
    for item in read(file, tokenizer, max_length):
        if isinstance(item, UnrenderableError):
            left_out[item.kind.value] += 1
            continue
        taken.append(item)
        if len(taken) == max_items:
            break
    if not taken:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        raise DataError(
            f"{file}: none of its items can be asked (left out: {kinds or 'nothing was there'}). In params.yaml raise "
            f"data.max_length (now {max_length}), or take the set out of data.ood_path"
        )
    return EvaluationSet(taken, dict(left_out))


def _json_items(
    file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[EvaluationItem | UnrenderableError]:
    laws = read_laws(file)
    for index, item in enumerate(read_ood_items(file)):
        try:
            yield _item(item, None if laws is None else laws[index], tokenizer, max_length)
        except UnrenderableError as fault:
            yield fault


def _item(item: Item, laws: Laws | None, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> EvaluationItem:
    if isinstance(item, Question):
        return _question(item, tokenizer, max_length)
    if isinstance(item, Instruction):
        return _instruction(item, tokenizer, max_length)
    return _conversation(item, laws, tokenizer, max_length)


def _question(item: Question, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> EvaluationItem:
    rows = tuple(continuation_row(context, continuation, tokenizer, max_length) for context, continuation in item.pairs)
    return EvaluationItem(item.row_id, "choice" if len(rows) > 1 else "exact", rows, item.gold)


def _instruction(item: Instruction, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> EvaluationItem:
    text = render_prompt(({"role": "user", "content": item.prompt},), tokenizer)
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) >= max_length:
        raise DoesNotFitError(f"the prompt has {len(ids)} tokens, data.max_length is {max_length}")
    return EvaluationItem(item.row_id, "rules", (), prompt=Prompt(ids, rules=item.rules))


def _conversation(item: Conversation, laws: Laws | None, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> EvaluationItem:
    rendered = render(item.messages, tokenizer, max_length)
    kept = None if laws is None else [_law_of_ids(law, tokenizer) for law in laws[: sum(rendered.is_target)]]
    row = ItemRow(rendered.input_ids, rendered.is_target, kept)
    return EvaluationItem(item.row_id, "tokens", (row,), prompt=prompt_of_row(row, tokenizer))


def _law_of_ids(law: dict[str, float], tokenizer: "PreTrainedTokenizerBase") -> dict[int, float]:
    return {token_id(word, tokenizer): probability for word, probability in law.items()}


def token_id(word: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    number = tokenizer.convert_tokens_to_ids(word)
    assert isinstance(number, int)
    return number


def _text_windows(
    file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[EvaluationItem | UnrenderableError]:
    ids = tokenizer(read_utf8(file), add_special_tokens=False, verbose=False)["input_ids"]
    for number, begin in enumerate(range(0, len(ids), max_length - 1), start=1):
        window = ids[begin : begin + max_length - 1]
        row = ItemRow([start_token(tokenizer), *window], [False] + [True] * len(window))
        yield EvaluationItem(f"{file.name}:window{number}", "text", (row,))
