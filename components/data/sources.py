"""Reading instruction data: Alpaca, ShareGPT, GSM8K, chat `messages` and prompt/completion rows, from JSON or JSONL files.

Every row becomes a Conversation or a Rejection with the place and the reason; nothing is dropped in silence.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


class _RowFault(Exception):
    """Why one row cannot be used; becomes a Rejection."""


def list_sources(path: Path) -> list[Path]:
    """The data files at `path` (one file, or every .json/.jsonl of a folder, in name order)."""
    if path.is_file():
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
    for place, raw in _read_rows(file):
        row_id = f"{file.name}:{place}"
        if isinstance(raw, _RowFault):
            yield Rejection(row_id, file.name, str(raw))
            continue
        try:
            schema, messages = parse_row(raw)
            yield Conversation(row_id, file.name, schema, messages)
        except _RowFault as fault:
            yield Rejection(row_id, file.name, str(fault))


def parse_row(raw: Any) -> tuple[str, tuple[Message, ...]]:
    """Recognise the schema of a row by its keys and turn it into chat messages."""
    if not isinstance(raw, dict):
        raise _RowFault(f"a row must be a JSON object, found {_kind(raw)}")
    for schema, keys in SCHEMA_KEYS.items():
        if all(key in raw for key in keys):
            return schema, _check_turns(_PARSERS[schema](raw))
    known = "; ".join(f"{schema}: {' + '.join(keys)}" for schema, keys in SCHEMA_KEYS.items())
    raise _RowFault(f"no known schema has the keys {sorted(map(str, raw))[:8]} (known: {known})")


def _read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not data.strip():
        raise DataError(f"{file} is empty. Remove the file or put data into it")
    if file.suffix == ".jsonl":
        yield from _read_lines(data)
        return
    try:
        rows = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}. Convert it: iconv -f <encoding> -t utf-8") from None
    except json.JSONDecodeError as error:
        hint = " The file looks like JSON lines: name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(
            f"{file}:{error.lineno}:{error.colno}: not valid JSON ({error.msg}). Mend the file there.{hint}"
        ) from None
    except _RowFault as fault:
        raise DataError(f"{file}: {fault}") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: a .json source must be a list of rows, found {_kind(rows)}. Wrap it in [...] or name it .jsonl")
    yield from enumerate(rows, start=1)


def _read_lines(data: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        except UnicodeDecodeError as error:
            yield number, _RowFault(f"not UTF-8 at byte {error.start} of the line")
        except json.JSONDecodeError as error:
            yield number, _RowFault(f"not valid JSON: {error.msg} at column {error.colno}")
        except _RowFault as fault:
            yield number, fault


def _refuse_constant(name: str) -> None:
    raise _RowFault(f"{name} is not valid JSON")


def _text(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise _RowFault(f"{key} must be a text, found {_kind(value)}")
    if not value.strip() and not may_be_empty:
        raise _RowFault(f"{key} is empty")
    return value


def _parse_alpaca(row: Mapping[str, Any]) -> list[Message]:
    context = _text(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    instruction = _text(row, "instruction")
    prompt = f"{instruction}\n\n{context}" if context.strip() else instruction
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": _text(row, "output")}]


def _parse_gsm8k(row: Mapping[str, Any]) -> list[Message]:
    answer = _text(row, "answer")
    if "####" not in answer:
        raise _RowFault("answer has no '#### <number>' line")
    return [{"role": "user", "content": _text(row, "question")}, {"role": "assistant", "content": answer}]


def _parse_completion(row: Mapping[str, Any]) -> list[Message]:
    return [{"role": "user", "content": _text(row, "prompt")}, {"role": "assistant", "content": _text(row, "completion")}]


def _parse_turns(turns: Any, list_key: str, role_key: str, text_key: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise _RowFault(f"{list_key} must be a list with at least one turn, found {_kind(turns)}")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise _RowFault(f"{list_key}[{number}] must be an object, found {_kind(turn)}")
        role = turn.get(role_key)
        if role not in ROLES:
            raise _RowFault(f"{list_key}[{number}].{role_key}: unknown role {role!r} (known: {', '.join(sorted(ROLES))})")
        try:
            messages.append({"role": ROLES[role], "content": _text(turn, text_key)})
        except _RowFault as fault:
            raise _RowFault(f"{list_key}[{number}].{fault}") from None
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
        raise _RowFault(f"turns must alternate user, assistant (found {' '.join(roles[:8])}{' …' if len(roles) > 8 else ''})")
    if body[-1] != "assistant":
        raise _RowFault("the last turn is not the assistant's: there is nothing to learn from it")
    return tuple(messages)


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__) + (" without entries" if value in ([], {}) else "")
