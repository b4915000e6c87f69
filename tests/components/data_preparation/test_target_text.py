"""Laws of the last look at the targets: they say the answers in order, and a row beside another's tokens is found."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from components.data.tokenising import tokenise_table
from components.data_preparation.target_text import targets_say_the_answers

CONVERSATIONS = [
    [["user", "how many eggs"], ["assistant", "fourteen eggs"]],
    [["user", "a"], ["assistant", "first 你好 👩‍🚀"], ["user", "b"], ["assistant", "second\nline"]],
    [["system", "s"], ["user", "x"], ["assistant", "third"]],
]


def table_of(tokens_of: list[int], tokenizer: Any, max_length: int = 512) -> pa.Table:
    """Row r of the table has the conversation r, and the tokens of the conversation `tokens_of[r]`."""
    texts = [json.dumps(turns) for turns in CONVERSATIONS]
    tokens = tokenise_table(texts, tokenizer, max_length).take(tokens_of)
    columns = {f"tokenised.{name}": tokens.column(name) for name in ("input_ids", "is_target", "num_turns_cut")}
    return pa.table({"parsed.conversation": pa.array(texts), **columns})


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest, make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer(request.param, "plain")


def test_the_targets_of_rendered_rows_say_the_answers(tokenizer: Any) -> None:
    assert targets_say_the_answers(table_of([0, 1, 2], tokenizer), tokenizer).tolist() == [True, True, True]


def test_a_row_beside_the_tokens_of_another_is_found(tokenizer: Any) -> None:
    assert targets_say_the_answers(table_of([1, 1, 0], tokenizer), tokenizer).tolist() == [False, True, False]


def test_answers_that_were_cut_off_are_not_asked_for(tokenizer: Any) -> None:
    whole = tokenise_table([json.dumps(CONVERSATIONS[1])], tokenizer, 512)
    table = table_of([0, 1, 2], tokenizer, max_length=len(whole["input_ids"][0]) - 1)
    assert table.column("tokenised.num_turns_cut").to_pylist()[1] == 1
    assert targets_say_the_answers(table, tokenizer).tolist()[1]


def test_a_slice_of_a_table_is_read_from_its_own_beginning(tokenizer: Any) -> None:
    assert targets_say_the_answers(table_of([2, 1, 2], tokenizer).slice(1), tokenizer).tolist() == [True, True]
