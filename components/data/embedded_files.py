"""Writing the embedded world as the published files: Alpaca JSON, ShareGPT JSON, GSM8K JSONL, and the true laws beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts import write_text
from components.data.conversations import Message
from components.data.embedded_world import Example
from components.data.file_kinds import LAWS_SUFFIX

FILE_NAMES = {"alpaca": "alpaca.json", "sharegpt": "sharegpt.json", "gsm8k": "gsm8k.jsonl", "messages": "messages.jsonl"}


def messages_of(example: Example) -> tuple[Message, ...]:
    pairs = [
        ({"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}) for turn in example.turns
    ]
    return tuple(message for pair in pairs for message in pair)


def write_examples(folder: Path, examples: Sequence[Example], names: Mapping[str, str] = FILE_NAMES) -> None:
    """One file per schema, and beside it `<name>.laws.jsonl`: for each row the laws of all answered words, in order."""
    for schema, name in names.items():
        rows = [example for example in examples if example.schema == schema]
        if not rows:
            continue
        published = [_published_row(example) for example in rows]
        whole = "\n".join(json.dumps(row) for row in published) if name.endswith("l") else json.dumps(published, indent=1)
        write_text(folder / name, whole + "\n")
        laws = [json.dumps([law for turn in example.turns for law in turn.laws]) for example in rows]
        write_text(folder / (name + LAWS_SUFFIX), "\n".join(laws) + "\n")


def read_laws(source: Path) -> list[list[dict[str, float]]] | None:
    """The laws written beside a source file, a list per row; None where there are none (real data)."""
    file = source.with_name(source.name + LAWS_SUFFIX)
    if not file.exists():
        return None
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _published_row(example: Example) -> dict[str, Any]:
    first = example.turns[0]
    if example.schema == "alpaca":
        return {"instruction": first.question, "input": "", "output": first.answer}
    if example.schema == "gsm8k":
        return {"question": first.question, "answer": first.answer}
    if example.schema == "sharegpt":
        names = {"user": "human", "assistant": "gpt"}
        return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages_of(example)]}
    return {"messages": list(messages_of(example))}
