"""Our held-out sets as tasks of lm-evaluation-harness: the same questions and the same token ids, in its own YAML and JSONL.

The begin of sequence is written into the context, so that the harness asks no tokenizer for it. It tokenises context and
context + continuation and cuts the second by the length of the first; we tokenise them together and give a token across the
border to the continuation. Where the two disagree an item is left out and counted: `other_tokens`; so is one whose context loses
its beginning (`cut_to_fit`): the harness cuts off the begin of sequence, too.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.artifacts import write_text
from components.data.held_out import Question, read_ood_items
from components.data.json_rows import read_utf8
from components.data.unrenderable import UnrenderableError
from components.evaluation.items import ItemRow, continuation_row, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "ballast_"
Pair = tuple[str, str]


@dataclass
class ExportedSet:
    """What became of one file: documents of the task (item id of each), and items left out by kind."""

    task: str
    kind: str
    item_ids: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, kind: str) -> None:
        self.left_out[kind] = self.left_out.get(kind, 0) + 1


def task_name(set_name: str) -> str:
    return PREFIX + set_name.replace("/", "__").replace(".", "_")


def export_sets(
    files: Mapping[str, Path], folder: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int, max_items: int
) -> dict[str, ExportedSet]:
    """A YAML task and a JSONL file for every set that lm-eval can ask; conversations and rules it cannot: they are counted."""
    exported = {}
    for name, file in files.items():
        one = ExportedSet(task_name(name), "text" if file.suffix == ".txt" else "none")
        found = (_text_documents if file.suffix == ".txt" else _documents)(file, one, tokenizer, max_length)
        documents = list(islice(found, max_items))
        if documents:
            data = folder / f"{one.task}.jsonl"
            write_text(data, "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents))
            write_text(folder / f"{one.task}.yaml", yaml.safe_dump(_task(one, data.resolve(), documents[0]), sort_keys=False))
        exported[name] = one
    return exported


def _questions(file: Path, one: ExportedSet) -> Iterator[tuple[str, tuple[Pair, ...], int]]:
    for item in read_ood_items(file):
        if isinstance(item, Question):
            yield item.row_id, item.pairs, item.gold
        else:
            one.leave_out("answered_in_the_chat_template")


def _windows(file: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[tuple[str, str, list[int]]]:
    """The windows of components.evaluation.tasks with the text that they stand for; a window may begin within a word."""
    text = read_utf8(file)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, places = read["input_ids"], read["offset_mapping"]
    for number, begin in enumerate(range(0, len(ids), max_length - 1), start=1):
        window = slice(begin, begin + max_length - 1)
        yield f"{file.name}:window{number}", text[places[window][0][0] : places[window][-1][1]], ids[window]


def _text_documents(
    file: Path, one: ExportedSet, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[dict[str, Any]]:
    start = start_token(tokenizer)
    begin = str(tokenizer.decode([start]))
    for item_id, text, ids in _windows(file, tokenizer, max_length):
        said = [words for words in (text, text.removeprefix(" ")) if harness_tokens(begin, words, tokenizer) == ([start], ids)]
        if not said:  # for example a window that begins within a word
            one.leave_out("other_tokens")
            continue
        one.item_ids.append(item_id)
        yield _document(item_id, [(begin, said[0])], 0)


def _documents(file: Path, one: ExportedSet, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[dict[str, Any]]:
    begin = str(tokenizer.decode([start_token(tokenizer)]))
    for item_id, pairs, gold in _questions(file, one):
        try:
            rows = [continuation_row(context, continuation, tokenizer, max_length) for context, continuation in pairs]
        except UnrenderableError as error:
            one.leave_out(str(error.kind))
            continue
        asked = [(begin + context, continuation) for context, continuation in pairs]
        if [_as_ours(row) for row in rows] != [harness_tokens(*pair, tokenizer) for pair in asked]:
            one.leave_out("cut_to_fit" if any(len(row.input_ids) == max_length for row in rows) else "other_tokens")
            continue
        one.item_ids.append(item_id)
        one.kind = "choice" if len(pairs) > 1 else "exact"
        yield _document(item_id, asked, gold)


def _as_ours(row: ItemRow) -> tuple[list[int], list[int]]:
    first = row.is_target.index(True)
    return row.input_ids[:first], row.input_ids[first:]


def harness_tokens(context: str, continuation: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Ids of context and continuation as its causal models cut them; spaces at the end of a context go to the continuation."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = tokenizer.encode(context + continuation, add_special_tokens=False)
    given = tokenizer.encode(context, add_special_tokens=False)
    return given, whole[len(given) :]


def _document(item_id: str, asked: list[Pair], gold: int) -> dict[str, Any]:
    contexts, continuations = [pair[0] for pair in asked], [pair[1] for pair in asked]
    if len(asked) == 1:
        return {"item_id": item_id, "context": contexts[0], "continuation": continuations[0]}
    if len(set(contexts)) == 1:
        return {"item_id": item_id, "context": contexts[0], "choices": continuations, "gold": gold}
    return {"item_id": item_id, "contexts": contexts, "continuation": continuations[0], "gold": gold}


def _task(one: ExportedSet, data: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML of a task whose fields are those of `_document`."""
    if "choices" in document:
        asked = {"output_type": "multiple_choice", "doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "gold"}
    elif "contexts" in document:
        asked = {"output_type": "multiple_choice", "doc_to_text": "gold", "doc_to_choice": "contexts"}
        asked |= {"doc_to_target": "continuation"}
    else:
        asked = {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "continuation"}
    return {
        "task": one.task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **asked,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
