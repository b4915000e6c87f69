"""The published schemas of instruction data: recognised by a row's keys, and turned into conversations.

messages            messages: [{role, content}], content a text or a list of text parts (OpenAI)
sharegpt            conversations: [{from, value}]; also {role, content}; optional system
self_instruct       instruction + instances: [{input, output}], one example each
alpaca              instruction + output; optional input, system, history: [[question, answer]]
gsm8k               question + answer, which ends with `#### <number>`
prompt_completion   prompt + completion, or prompt + response: texts, or lists of turns (TRL)

A row with the keys of several is read by the first of them. A key that is null counts only where no schema has all of its keys,
for a table (Parquet) holds the keys of every schema in every row. Other keys are left alone.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from components.data.conversations import Message
from components.data.faults import BadRowError, FaultKind
from components.data.strict_json import kind_of
from components.data.turns import check_order, filled, optional, parse_turns

Row = Mapping[str, Any]
Messages = tuple[Message, ...]


def parse_rows(value: Any) -> tuple[str, list[Messages]]:
    """Name of the schema, and the row's examples, of which self-instruct seed tasks have several. A BadRowError if it is none."""
    if not isinstance(value, dict):
        raise BadRowError(
            f"a row must be a JSON object, found {kind_of(value)}. Write the row as {{...}} with the keys of a schema",
            FaultKind.NOT_AN_OBJECT,
        )
    for is_there in (_has_value, _has_key):
        for schema, keys, parse in _SCHEMAS:
            if all(is_there(value, key) for key in keys):
                return schema, [check_order(messages) for messages in parse(value)]
    raise BadRowError(_unknown(value), FaultKind.UNKNOWN_SCHEMA)


def parse_row(value: Any) -> tuple[str, Messages]:
    """The same where a row must be one example (held-out sets)."""
    schema, examples = parse_rows(value)
    if len(examples) != 1:
        raise BadRowError(
            f"instances holds {len(examples)} examples, where a row must be one. Write a row for each", FaultKind.WRONG_TYPE
        )
    return schema, examples[0]


def answer_number(answer: str) -> str | None:
    """The number behind the last `####` of a GSM8K answer, if it stands at the end; thousands may have commas."""
    found = _ANSWER.search(answer)
    return None if found is None else found[1]


_ANSWER = re.compile(r"####[ \t]*([-+−]?\$?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+))\s*\Z", re.ASCII)


def _has_value(row: Row, key: str) -> bool:
    return row.get(key) is not None


def _has_key(row: Row, key: str) -> bool:
    return key in row


def _unknown(row: Row) -> str:
    if not row:
        return f"the object has no keys. Write those of a schema, or remove the row (known: {_KNOWN})"
    shown = ", ".join(repr(key[:40]) for key in sorted(map(str, row))[:8])
    return f"no schema has the keys {shown}. Rename them to those of one (known: {_KNOWN})"


def _pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _system(row: Row) -> list[Message]:
    text = optional(row, "system")
    return [] if text is None else [{"role": "system", "content": text}]


def _instruction(row: Row, instruction: str) -> str:
    context = optional(row, "input")
    return instruction if context is None else f"{instruction}\n\n{context}"


def _parse_alpaca(row: Row) -> list[list[Message]]:
    history = _parse_history(row["history"]) if row.get("history") is not None else []
    return [[*_system(row), *history, *_pair(_instruction(row, filled(row, "instruction")), filled(row, "output"))]]


def _parse_history(history: Any) -> list[Message]:
    """Earlier turns of an Alpaca row, as LLaMA-Factory writes them."""
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        found = kind_of(history) if not isinstance(history, list) else "something else in it"
        raise BadRowError(
            f"history must be a list of pairs [question, answer], found {found}. Write pairs, or remove the key",
            FaultKind.WRONG_TYPE,
        )
    messages: list[Message] = []
    for number, (question, answer) in enumerate(history, start=1):
        texts = {f"history[{number}][1]": question, f"history[{number}][2]": answer}
        messages += _pair(*(filled(texts, key) for key in texts))
    return messages


def _parse_self_instruct(row: Row) -> list[list[Message]]:
    instruction, instances = filled(row, "instruction"), row["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRowError(
            f"instances must be a list of {{input, output}}, found {kind_of(instances)}. Add one, or remove the row",
            FaultKind.WRONG_TYPE,
        )
    return [_parse_instance(instance, instruction, f"instances[{number}]") for number, instance in enumerate(instances, start=1)]


def _parse_instance(instance: Any, instruction: str, name: str) -> list[Message]:
    if not isinstance(instance, dict):
        raise BadRowError(f"{name} must be an object, found {kind_of(instance)}. Write {{input, output}}", FaultKind.WRONG_TYPE)
    try:
        return _pair(_instruction(instance, instruction), filled(instance, "output"))
    except BadRowError as fault:
        raise BadRowError(f"{name}.{fault}", fault.kind) from None


def _parse_gsm8k(row: Row) -> list[list[Message]]:
    messages = _pair(filled(row, "question"), answer := filled(row, "answer"))
    if "####" not in answer:
        raise BadRowError("answer has no '#### <number>' line. Add it at the end, or remove the row", FaultKind.NO_ANSWER)
    if answer_number(answer) is None:
        found = answer.rpartition("####")[2].strip()[:40]
        raise BadRowError(
            f"answer must end with '#### <number>', found {found!r}. Write one number there and nothing after it",
            FaultKind.NO_ANSWER,
        )
    return [messages]


def _parse_completion(row: Row) -> list[list[Message]]:
    key = "completion" if row.get("completion") is not None or "response" not in row else "response"
    kinds = {type(row["prompt"]), type(row[key])}
    if list not in kinds:
        return [_pair(filled(row, "prompt"), filled(row, key))]
    if len(kinds) > 1:
        found = f"{kind_of(row['prompt'])} and {kind_of(row[key])}"
        raise BadRowError(
            f"prompt and {key} must both be texts or both be lists of turns, found {found}. Write both the same way",
            FaultKind.WRONG_TYPE,
        )
    return [[*parse_turns(row["prompt"], "prompt"), *parse_turns(row[key], key)]]


_SCHEMAS: tuple[tuple[str, tuple[str, ...], Callable[[Row], list[list[Message]]]], ...] = (
    ("messages", ("messages",), lambda row: [_system(row) + parse_turns(row["messages"], "messages")]),
    ("sharegpt", ("conversations",), lambda row: [_system(row) + parse_turns(row["conversations"], "conversations")]),
    ("self_instruct", ("instruction", "instances"), _parse_self_instruct),
    ("alpaca", ("instruction", "output"), _parse_alpaca),
    ("gsm8k", ("question", "answer"), _parse_gsm8k),
    ("prompt_completion", ("prompt", "completion"), _parse_completion),
    ("prompt_completion", ("prompt", "response"), _parse_completion),
)
SCHEMAS = tuple(dict.fromkeys(schema for schema, _, _ in _SCHEMAS))
_KNOWN = "; ".join(
    f"{schema}: {' or '.join(' + '.join(keys) for one, keys, _ in _SCHEMAS if one == schema)}" for schema in SCHEMAS
)
