"""Reading instruction data: Alpaca, ShareGPT, GSM8K, chat `messages` and prompt/completion rows, from JSON or JSONL files.

Every row becomes a Conversation or a Rejection with the place and the reason; nothing is dropped in silence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data.faults import BadRowError
from components.data.json_rows import kind_of, read_rows, text_of
from components.errors import DataError

Message = dict[str, str]
SUFFIXES = (".json", ".jsonl")
LAWS_SUFFIX = ".laws.jsonl"
"""Files that hold the true laws of the embedded world beside its data; not data themselves."""
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}
SCHEMA_KEYS = {
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "gsm8k": ("question", "answer"),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
}


@dataclass(frozen=True)
class Conversation:
    """One row of a source: `row_id` is file:line (or file:index for a JSON list), counted from 1."""

    row_id: str
    source: str
    schema: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Rejection:
    row_id: str
    source: str
    reason: str


def list_sources(path: Path) -> list[Path]:
    """The data files at `path` (one file, or every .json/.jsonl of a folder, in name order)."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"data.path: {path} is neither .json (a list of rows) nor .jsonl (a row per line); convert it to one")
        return [path]
    if not path.is_dir():
        raise DataError(
            f"data.path: {path} does not exist. Set data.path in params.yaml to a file or folder of .json/.jsonl data"
        )
    files = sorted(
        file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file() and not file.name.endswith(LAWS_SUFFIX)
    )
    if not files:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise DataError(f"data.path: {path} holds no .json or .jsonl file (found: {found}). Put your data there or set data.path")
    return files


def read_source(file: Path) -> Iterator[Conversation | Rejection]:
    """Rows of one file in order. A file that cannot be read at all is a DataError; a bad row is a Rejection."""
    for place, raw in read_rows(file):
        row_id = f"{file.name}:{place}"
        if isinstance(raw, BadRowError):
            yield Rejection(row_id, file.name, str(raw))
            continue
        try:
            schema, messages = parse_row(raw)
            yield Conversation(row_id, file.name, schema, messages)
        except BadRowError as fault:
            yield Rejection(row_id, file.name, str(fault))


def parse_row(raw: Any) -> tuple[str, tuple[Message, ...]]:
    """Recognise the schema of a row by its keys and turn it into chat messages."""
    if not isinstance(raw, dict):
        raise BadRowError(f"a row must be a JSON object, found {kind_of(raw)}")
    for schema, keys in SCHEMA_KEYS.items():
        if all(key in raw for key in keys):
            return schema, _check_turns(_PARSERS[schema](raw))
    known = "; ".join(f"{schema}: {' + '.join(keys)}" for schema, keys in SCHEMA_KEYS.items())
    raise BadRowError(f"no known schema has the keys {[key[:40] for key in sorted(raw)[:8]]} (known: {known})")


def _text(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    value = text_of(row, key)
    if not value.strip() and not may_be_empty:
        raise BadRowError(f"{key} is empty")
    return value


def _parse_alpaca(row: Mapping[str, Any]) -> list[Message]:
    context = _text(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    instruction = _text(row, "instruction")
    prompt = f"{instruction}\n\n{context}" if context.strip() else instruction
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": _text(row, "output")}]


def _parse_gsm8k(row: Mapping[str, Any]) -> list[Message]:
    answer = _text(row, "answer")
    if "####" not in answer:
        raise BadRowError("answer has no '#### <number>' line")
    return [{"role": "user", "content": _text(row, "question")}, {"role": "assistant", "content": answer}]


def _parse_completion(row: Mapping[str, Any]) -> list[Message]:
    return [{"role": "user", "content": _text(row, "prompt")}, {"role": "assistant", "content": _text(row, "completion")}]


def _parse_turns(turns: Any, list_key: str, role_key: str, text_key: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise BadRowError(f"{list_key} must be a list with at least one turn, found {kind_of(turns)}")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise BadRowError(f"{list_key}[{number}] must be an object, found {kind_of(turn)}")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in ROLES:
            raise BadRowError(f"{list_key}[{number}].{role_key}: unknown role {role!r:.40} (known: {', '.join(sorted(ROLES))})")
        try:
            messages.append({"role": ROLES[role], "content": _text(turn, text_key)})
        except BadRowError as fault:
            raise BadRowError(f"{list_key}[{number}].{fault}") from None
    return messages


_PARSERS = {
    "alpaca": _parse_alpaca,
    "sharegpt": lambda row: _parse_turns(row["conversations"], "conversations", "from", "value"),
    "gsm8k": _parse_gsm8k,
    "messages": lambda row: _parse_turns(row["messages"], "messages", "role", "content"),
    "prompt_completion": _parse_completion,
}


def _check_turns(messages: list[Message]) -> tuple[Message, ...]:
    """One optional system turn, then user and assistant in turn, the assistant last."""
    roles = [message["role"] for message in messages]
    body = roles[1:] if roles[0] == "system" else roles
    wanted = ["user", "assistant"] * ((len(body) + 1) // 2)
    if not body or body != wanted[: len(body)]:
        raise BadRowError(f"turns must alternate user, assistant (found {' '.join(roles[:8])}{' …' if len(roles) > 8 else ''})")
    if body[-1] != "assistant":
        raise BadRowError("the last turn is not the assistant's: there is nothing to learn from it")
    return tuple(messages)
