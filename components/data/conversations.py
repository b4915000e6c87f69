"""A conversation: what every schema is turned into, and how the tables of the preparation keep it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""


@dataclass(frozen=True)
class Conversation:
    """One example: `row_id` is `<source>:<line or number>`, counted from 1, with `#2` … where a row gives several examples."""

    row_id: str
    source: str
    schema: str
    messages: tuple[Message, ...]


def encode_conversation(messages: Sequence[Message]) -> str:
    """A JSON list of [role, content] pairs: text compresses well, and needs no nested Arrow type."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def decode_conversation(text: str) -> tuple[Message, ...]:
    return tuple({"role": role, "content": content} for role, content in json.loads(text))
