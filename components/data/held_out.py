"""Held-out sets as files: which there are, their items, and the texts that no training row may repeat.

One set per file, the item format recognised by the keys of the first row:

choices + query + gold                 multiple choice: query, a space, each choice
context_options + continuation + gold  multiple choice over contexts (Winograd)
sentence_good + sentence_bad           multiple choice between two sentences (BLiMP)
context + continuation                 exact continuation (LAMBADA, arithmetic)
Body + Question + Answer               exact answer (SVAMP)
input + target                         exact answer (MAWPS; BIG-Bench Hard under `examples`)
prompt + instruction_id_list + kwargs  an instruction with rules that an answer must keep (IFEval)
messages, or any training schema       a conversation
a .txt file                            plain text
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data.conversations import Conversation
from components.data.faults import BadRowError
from components.data.file_kinds import LAWS_SUFFIX, is_data, is_foreign_data, repair_of
from components.data.instruction_rules import Rule, parse_rule
from components.data.json_rows import read_rows, read_utf8
from components.data.schemas import parse_row
from components.data.strict_json import kind_of, text_of
from components.data.turns import ROLES
from components.errors import DataError

SUFFIXES = (".json", ".jsonl", ".txt")
MIN_WORDS = 4
"""A held-out text with fewer words (a bare answer) says nothing when a training turn equals it."""
MEND = "Mend the row or remove it"
Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """Contexts, each with a continuation, of which number `gold` is right; a single pair is to be hit exactly."""

    row_id: str
    pairs: tuple[tuple[str, str], ...]
    gold: int


@dataclass(frozen=True)
class Instruction:
    """A prompt, and the rules that an answer to it must keep."""

    row_id: str
    prompt: str
    rules: tuple[Rule, ...]


Item = Question | Instruction | Conversation


def list_ood_files(path: Path) -> list[Path]:
    """Every set file at `path`: one file, or all of a folder and its subfolders, in name order."""
    files = [path] if path.is_file() else sorted(_walk(path))
    found = [file for file in files if file.suffix in SUFFIXES and not file.name.endswith(LAWS_SUFFIX)]
    for file in files:
        if file.suffix not in SUFFIXES and (is_data(file.name) or is_foreign_data(file.name)):
            raise DataError(f"data.ood_path: {file} is no held-out set: those are .json, .jsonl or .txt. {_repair(file.name)}")
    if not found:
        raise DataError(f"data.ood_path: no .json, .jsonl or .txt set at {path}. Put held-out sets there or set data.ood_path")
    return found


def _repair(name: str) -> str:
    return "Unpack or convert it to one of them, or move it out" if is_data(name) else repair_of(name)


def _refuse_unlisted(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        return  # is answered as a path without sets
    raise DataError(
        f"data.ood_path: {error.filename} cannot be listed: {error.strerror}. Give the right to read it, or move it out"
    ) from None


def _walk(path: Path) -> Iterator[Path]:
    """Links are followed, but not one back to a folder that it stands in: its files would come forty times."""
    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=_refuse_unlisted):
        here = Path(folder).resolve()
        subfolders[:] = [name for name in subfolders if not here.is_relative_to((here / name).resolve())]
        yield from (Path(folder) / name for name in names)


def read_json_rows(file: Path) -> list[tuple[int, Row]]:
    """The rows of a .json list, a .jsonl file or a BIG-Bench Hard file (`examples`), each with its line or number."""
    rows = list(read_rows(file, list_key="examples"))
    for place, row in rows:
        if not isinstance(row, dict):
            wrong = f"a held-out item must be a JSON object, found {kind_of(row)}. {MEND}"
            raise DataError(f"{file}:{place}: {row if isinstance(row, BadRowError) else wrong}")
    return rows


def read_ood_items(file: Path) -> list[Item]:
    """The items of a .json or .jsonl set; a row that is not of the set's format is an error with its place."""
    rows = read_json_rows(file)
    parse = next((parse for keys, parse in _FORMATS.items() if all(key in rows[0][1] for key in keys)), _conversation)
    items: list[Item] = []
    for place, row in rows:
        try:
            items.append(parse(f"{file.name}:{place}", row))
        except BadRowError as fault:
            raise DataError(f"{file}:{place}: {fault}") from None
    return items


def ood_texts(file: Path) -> list[str]:
    """Texts of a set, one entry per string value (what is asked of a conversation, lines of a plain text)."""
    if file.suffix == ".txt":
        texts = read_utf8(file).splitlines()
    else:
        texts = [text for _, row in read_json_rows(file) for text in _strings(row)]
    return [text for text in texts if len(text.split()) >= MIN_WORDS]


def _speaker(turn: Row) -> str | None:
    role = turn.get("role", turn.get("from"))
    return ROLES.get(role.lower(), role) if isinstance(role, str) else None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict) and _speaker(value) not in (None, "user"):
        return []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in _strings(part)]


def _conversation(row_id: str, row: Row) -> Conversation:
    return Conversation(row_id, row_id.rpartition(":")[0], *parse_row(row))


def _choices(row_id: str, row: Row) -> Question:
    query = text_of(row, "query")
    choices = _options(row, "choices")
    pairs = tuple((query, _spaced({"choices": choice}, "choices")) for choice in choices)
    return Question(row_id, pairs, _gold(row, len(choices)))


def _contexts(row_id: str, row: Row) -> Question:
    contexts = [text_of({"context_options": context}, "context_options") for context in _options(row, "context_options")]
    return Question(row_id, tuple((context, _spaced(row, "continuation")) for context in contexts), _gold(row, len(contexts)))


def _sentences(row_id: str, row: Row) -> Question:
    return Question(row_id, (("", _sentence(row, "sentence_good")), ("", _sentence(row, "sentence_bad"))), 0)


def _exact(context_keys: tuple[str, ...], answer_key: str) -> Callable[[str, Row], Question]:
    def parse(row_id: str, row: Row) -> Question:
        return Question(row_id, ((" ".join(text_of(row, key) for key in context_keys), _spaced(row, answer_key)),), 0)

    return parse


def _instruction(row_id: str, row: Row) -> Instruction:
    ids, arguments = row["instruction_id_list"], row["kwargs"]
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
        raise BadRowError(f"instruction_id_list must be a list of rule ids, found {kind_of(ids)}. {MEND}")
    if not isinstance(arguments, list) or len(arguments) != len(ids) or not all(isinstance(one, dict) for one in arguments):
        raise BadRowError(f"kwargs must be a list of {len(ids)} objects, one for each entry of instruction_id_list. {MEND}")
    given = [{key: value for key, value in one.items() if value is not None} for one in arguments]
    return Instruction(row_id, _sentence(row, "prompt"), tuple(parse_rule(*one) for one in zip(ids, given, strict=True)))


_FORMATS: dict[tuple[str, ...], Callable[[str, Row], Item]] = {
    ("query", "choices", "gold"): _choices,
    ("context_options", "continuation", "gold"): _contexts,
    ("sentence_good", "sentence_bad"): _sentences,
    ("context", "continuation"): _exact(("context",), "continuation"),
    ("Body", "Question", "Answer"): _exact(("Body", "Question"), "Answer"),
    ("input", "target"): _exact(("input",), "target"),
    ("prompt", "instruction_id_list", "kwargs"): _instruction,
}


def _sentence(row: Row, key: str) -> str:
    if not text_of(row, key).strip():
        raise BadRowError(f"{key} is empty. {MEND}")
    return text_of(row, key)


def _spaced(row: Row, key: str) -> str:
    """An answer after one space; a number as a person writes it (3.0 is 3)."""
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f" {int(value) if isinstance(value, float) and value.is_integer() else value}"
    return f" {_sentence(row, key).lstrip()}"


def _options(row: Row, key: str) -> list[Any]:
    options = row.get(key)
    if not isinstance(options, list) or len(options) < 2:
        raise BadRowError(f"{key} must be a list of at least two, found {kind_of(options)}. {MEND}")
    return options


def _gold(row: Row, num_options: int) -> int:
    gold = row.get("gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < num_options:
        raise BadRowError(f"gold must be a number from 0 to {num_options - 1}, found {gold!r:.40}. {MEND}")
    return gold
