"""Laws of schemas: each is recognised by its keys, whatever else a row holds, and one conversation is the same in all of them."""

from typing import Any

import pytest

from components.data.conversations import decode_conversation, encode_conversation
from components.data.faults import BadRowError, FaultKind
from components.data.schemas import SCHEMAS, answer_number, parse_row, parse_rows
from components.data.turns import ROLES

ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
GSM8K = {"question": "2 + 3?", "answer": "2 + 3 = 5\n#### 5"}
PAIR = [("human", "Hi"), ("gpt", "Hello")]


def sharegpt(*pairs: tuple[str, Any], keys: tuple[str, str] = ("from", "value")) -> list[dict[str, Any]]:
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def chat(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return sharegpt(*pairs, keys=("role", "content"))


READ: list[tuple[str, dict[str, Any], list[str]]] = [
    ("alpaca", ALPACA, ["user: Name a colour.", "assistant: Blue."]),
    ("alpaca", {**ALPACA, "input": "Not red."}, ["user: Name a colour.\n\nNot red.", "assistant: Blue."]),
    ("alpaca", {"instruction": "a", "output": " b\n"}, ["user: a", "assistant:  b\n"]),
    ("alpaca", {**ALPACA, "input": None, "system": None, "history": None}, ["user: Name a colour.", "assistant: Blue."]),
    ("alpaca", {**ALPACA, "input": " \n", "system": "", "history": []}, ["user: Name a colour.", "assistant: Blue."]),
    (
        "alpaca",
        {"instruction": "c", "output": "d", "history": [["a", "b"], ["e", "f"]], "system": "s"},
        ["system: s", "user: a", "assistant: b", "user: e", "assistant: f", "user: c", "assistant: d"],
    ),
    ("self_instruct", {"instruction": "a", "instances": [{"input": "", "output": "b"}]}, ["user: a", "assistant: b"]),
    ("self_instruct", {"instruction": "a", "instances": [{"input": "i", "output": "b"}]}, ["user: a\n\ni", "assistant: b"]),
    ("sharegpt", {"id": "1", "conversations": sharegpt(*PAIR)}, ["user: Hi", "assistant: Hello"]),
    ("sharegpt", {"conversations": chat(("user", "Hi"), ("assistant", "Hello"))}, ["user: Hi", "assistant: Hello"]),
    ("sharegpt", {"conversations": sharegpt(*PAIR), "system": "s"}, ["system: s", "user: Hi", "assistant: Hello"]),
    ("sharegpt", {"conversations": sharegpt(*PAIR), "system": " "}, ["user: Hi", "assistant: Hello"]),
    ("sharegpt", {"conversations": sharegpt(("system", "s"), *PAIR)}, ["system: s", "user: Hi", "assistant: Hello"]),
    ("sharegpt", {"conversations": sharegpt(("Human", "Hi"), ("GPT ", "Hello"))}, ["user: Hi", "assistant: Hello"]),
    ("messages", {"messages": chat(("developer", "s"), *PAIR)}, ["system: s", "user: Hi", "assistant: Hello"]),
    ("messages", {"messages": sharegpt(*PAIR), "tools": []}, ["user: Hi", "assistant: Hello"]),
    (
        "messages",
        {"messages": chat(("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), ("assistant", "Hello"))},
        ["user: Hi", "assistant: Hello"],
    ),
    ("gsm8k", GSM8K, ["user: 2 + 3?", "assistant: 2 + 3 = 5\n#### 5"]),
    ("prompt_completion", {"prompt": "2 + 3 =", "completion": " 5"}, ["user: 2 + 3 =", "assistant:  5"]),
    ("prompt_completion", {"prompt": "2 + 3 =", "response": "5"}, ["user: 2 + 3 =", "assistant: 5"]),
    ("prompt_completion", {"prompt": "a", "completion": None, "response": "5"}, ["user: a", "assistant: 5"]),
    (
        "prompt_completion",
        {"prompt": chat(("system", "s"), ("user", "Hi")), "completion": chat(("assistant", "Hello"))},
        ["system: s", "user: Hi", "assistant: Hello"],
    ),
]


@pytest.mark.parametrize(("schema", "row", "turns"), READ)
def test_every_schema_is_read_with_any_other_keys_beside_it(schema: str, row: dict[str, Any], turns: list[str]) -> None:
    table = dict.fromkeys(("messages", "conversations", "instruction", "instances", "question", "answer", "prompt", "text"))
    for found in (row, {**row, "id": 7, "source": ["a"], "text": "b"}, {**table, **row}):
        name, messages = parse_row(found)
        assert name == schema
        assert [f"{message['role']}: {message['content']}" for message in messages] == turns
        assert decode_conversation(encode_conversation(messages)) == messages


def test_every_schema_has_a_row_that_is_read() -> None:
    assert {schema for schema, _, _ in READ} == set(SCHEMAS)


def test_the_same_conversation_is_the_same_in_every_schema() -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Hi", "output": "#### 1"},
        {"instruction": "Hi", "instances": [{"output": "#### 1"}]},
        {"conversations": sharegpt(("human", "Hi"), ("gpt", "#### 1"))},
        {"messages": chat(("user", "Hi"), ("assistant", "#### 1"))},
        {"question": "Hi", "answer": "#### 1"},
        {"prompt": "Hi", "completion": "#### 1"},
        {"prompt": chat(("user", "Hi")), "completion": chat(("assistant", "#### 1"))},
    ]
    assert len({encode_conversation(parse_row(row)[1]) for row in rows}) == 1


@pytest.mark.parametrize("role", ROLES)
def test_every_role_alias_means_its_role(role: str) -> None:
    turns = {
        "system": [(role, "a"), ("user", "b"), ("assistant", "c")],
        "user": [(role, "a"), ("assistant", "b")],
        "assistant": [("user", "a"), (role, "b")],
    }
    _, messages = parse_row({"conversations": sharegpt(*turns[ROLES[role]])})
    assert ROLES[role] in [message["role"] for message in messages]


def test_a_seed_task_gives_an_example_per_instance_and_is_refused_where_one_is_wanted() -> None:
    row = {"instruction": "a", "instances": [{"input": "1", "output": "b"}, {"input": "2", "output": "c"}]}
    schema, examples = parse_rows(row)
    assert (schema, [messages[-1]["content"] for messages in examples]) == ("self_instruct", ["b", "c"])
    with pytest.raises(BadRowError, match=r"holds 2 examples, where a row must be one\. Write a row for each") as caught:
        parse_row(row)
    assert caught.value.kind == FaultKind.WRONG_TYPE


def test_turn_lists_come_before_single_turns() -> None:
    assert parse_row({**ALPACA, "messages": chat(*PAIR)})[0] == "messages"
    assert parse_row({"prompt": "a", "completion": "b", "messages": None})[0] == "prompt_completion"


NUMBERS = ["5", "-5", "+5", "−5", "0.25", ".5", "1,234", "1,234,567.89", "$5", "-$5", "$1,000", "12345", "007", "5."]
NO_NUMBERS = [
    "",
    "-",
    "$",
    ".",
    ",",
    "1,23",
    "12,3456",
    "1.2.3",
    "5 apples",
    "five",
    "5%",
    "1e5",
    "5\n6",
    "5 6",
    "½",
    "0x5",
    "1/2",
    "--5",
]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_gsm8k_answer_may_be_any_way_to_write_a_number(number: str) -> None:
    for answer in (f"#### {number}", f"2 #### 3\n####{number} \n"):
        assert answer_number(answer) == number
        assert parse_row({"question": "a", "answer": answer})[0] == "gsm8k"


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_what_is_no_number_is_no_gsm8k_answer(number: str) -> None:
    assert answer_number(f"2 + 3\n#### {number}") is None
    with pytest.raises(BadRowError, match="answer must end with '#### <number>', found") as caught:
        parse_row({"question": "a", "answer": f"2 + 3\n#### {number}"})
    assert caught.value.kind == FaultKind.NO_ANSWER
