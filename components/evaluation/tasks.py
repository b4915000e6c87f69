"""Held-out sets from files: one set per file, the item format recognised by its keys.

choices + query + gold                 multiple choice: query, a space, each choice
context_options + continuation + gold  multiple choice over contexts (Winograd)
sentence_good + sentence_bad           multiple choice between two sentences (BLiMP)
context + continuation                 exact continuation (LAMBADA, arithmetic)
Body + Question + Answer               exact answer (SVAMP)
input + target                         exact answer (MAWPS; BIG-Bench Hard under `examples`)
messages, or any training schema       a conversation rendered with the chat template, scored token by token
a .txt file                            plain text, scored token by token in windows
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data.embedded_files import read_laws
from components.data.held_out import Row, read_json_rows
from components.data.rendering import DoesNotFitError, render
from components.data.sources import Conversation, read_source
from components.errors import DataError
from components.evaluation.items import EvaluationItem, ItemRow, continuation_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_ood_set(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int, max_items: int) -> list[EvaluationItem]:
    """The first `max_items` items of one file."""
    if file.suffix == ".txt":
        items = _text_windows(file, tokenizer, max_length)
    else:
        rows = read_json_rows(file)
        reader = next((make for keys, make in _READERS.items() if rows and all(key in rows[0] for key in keys)), None)
        if reader is None:
            items = _conversations(file, tokenizer, max_length)
        else:
            items = (_read_row(reader, file, index, row, tokenizer, max_length) for index, row in enumerate(rows, start=1))
    taken = [item for _, item in zip(range(max_items), items, strict=False)]
    if not taken:
        raise DataError(f"{file}: no usable item for data.max_length {max_length}")
    return taken


def _read_row(
    reader: Callable[[Row], Any], file: Path, index: int, row: Row, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> EvaluationItem:
    try:
        pairs, gold = reader(row)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{file.name}:{index}: not an item of the set's format ({type(error).__name__}: {error})") from None
    rows = tuple(continuation_row(context, continuation, tokenizer, max_length) for context, continuation in pairs)
    return EvaluationItem(f"{file.name}:{index}", "choice" if len(rows) > 1 else "exact", rows, gold)


def _spaced(text: Any) -> str:
    number = int(text) if isinstance(text, float) and text.is_integer() else text
    return f" {str(number).lstrip()}"


_READERS: dict[tuple[str, ...], Callable[[Row], tuple[list[tuple[str, str]], int]]] = {
    ("query", "choices", "gold"): lambda row: ([(row["query"], _spaced(choice)) for choice in row["choices"]], int(row["gold"])),
    ("context_options", "continuation", "gold"): lambda row: (
        [(context, _spaced(row["continuation"])) for context in row["context_options"]],
        int(row["gold"]),
    ),
    ("sentence_good", "sentence_bad"): lambda row: ([("", row["sentence_good"]), ("", row["sentence_bad"])], 0),
    ("context", "continuation"): lambda row: ([(row["context"], _spaced(row["continuation"]))], 0),
    ("Body", "Question", "Answer"): lambda row: ([(f"{row['Body']} {row['Question']}", _spaced(row["Answer"]))], 0),
    ("input", "target"): lambda row: ([(row["input"], _spaced(row["target"]))], 0),
}


def _conversations(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[EvaluationItem]:
    laws = read_laws(file)
    for index, row in enumerate(read_source(file)):
        if not isinstance(row, Conversation):
            raise DataError(f"{row.row_id}: {row.reason}")
        try:
            rendered = render(row.messages, tokenizer, max_length)
        except DoesNotFitError:
            continue
        truth = None if laws is None else [_law_of_ids(law, tokenizer) for law in laws[index]]
        yield EvaluationItem(row.row_id, "tokens", (ItemRow(rendered.input_ids, rendered.is_target, truth),))


def token_id(word: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    number = tokenizer.convert_tokens_to_ids(word)
    assert isinstance(number, int)
    return number


def _law_of_ids(law: dict[str, float], tokenizer: "PreTrainedTokenizerBase") -> dict[int, float]:
    return {token_id(word, tokenizer): probability for word, probability in law.items()}


def _text_windows(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[EvaluationItem]:
    ids = tokenizer(file.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for number, begin in enumerate(range(0, len(ids), max_length - 1), start=1):
        window = ids[begin : begin + max_length - 1]
        yield EvaluationItem(
            f"{file.name}:window{number}", "tokens", (ItemRow([start, *window], [False] + [True] * len(window)),)
        )
