"""Laws of the table of tokens: it holds what `render` gives, row by row."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from components.data.rendering import render
from components.data.tokenising import TOKENISED, tokenise_table


def encoded(*turns: tuple[str, str]) -> str:
    return json.dumps(turns, ensure_ascii=False)


def test_a_row_holds_what_render_gives(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "chatml")
    turns = [("user", "the cat"), ("assistant", "the mat 👩‍👩‍👧"), ("user", "the dog"), ("assistant", "sat " * 30)]
    column = [encoded(*turns), None, encoded(("user", "x"), ("assistant", "<|im_end|>")), encoded(*turns[:2])]
    table = tokenise_table(pa.chunked_array([column[:1], column[1:]]), tokenizer, 60)
    assert table.schema == TOKENISED and table.num_rows == 4
    rows = table.to_pylist()
    for row, text in ((rows[0], column[0]), (rows[3], column[3])):
        messages = tuple({"role": role, "content": said} for role, said in json.loads(str(text)))
        example = render(messages, tokenizer, 60)
        assert row["input_ids"] == example.input_ids and row["is_target"] == example.is_target
        assert row["fingerprint"] == example.fingerprint and row["num_turns_cut"] == example.num_turns_cut
        assert row["end_of_turn_is_target"] and row["fault"] is row["fault_kind"] is None
    assert rows[0]["num_turns_cut"] == 1 and rows[3]["num_turns_cut"] == 0


def test_a_rejected_row_has_no_tokens_and_its_fault_and_a_missing_one_has_no_fault(make_tokenizer: Callable[..., Any]) -> None:
    column = [encoded(("user", "x"), ("assistant", "<|im_end|>")), None]
    refused, missing = tokenise_table(column, make_tokenizer("byte_level", "chatml"), 60).to_pylist()
    assert refused["input_ids"] == missing["input_ids"] == [] and refused["is_target"] == []
    assert refused["fault_kind"] == "control_token" and "<|im_end|>" in refused["fault"]
    assert missing["fault_kind"] is missing["fault"] is None


def test_an_empty_batch_is_an_empty_table(make_tokenizer: Callable[..., Any]) -> None:
    assert tokenise_table(pa.array([], pa.string()), make_tokenizer("byte_level", "chatml"), 60).schema == TOKENISED
