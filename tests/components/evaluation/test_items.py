"""Laws of items: the continuation is the target, the context gives way, nothing of the continuation is ever cut."""

from collections.abc import Callable
from typing import Any

import pytest

from components.data.tokenized import TokenizedRow
from components.data.unrenderable import DoesNotFitError
from components.evaluation.items import EvaluationItem, ItemRow, continuation_row, item_of_row
from tests.components.conftest import KINDS

PAIRS = [
    ("the cat sat on", " the mat"),
    ("Question: how many eggs?", " fourteen"),
    ("3 + 4 =", " 7"),
    ("今天天气", " 很好"),
    ("so 😀", " 🎉"),
    ("two\nlines\n", " more"),
    ("", "The dogs bark."),
]


def decoded(row: ItemRow, tokenizer: Any, *, targets: bool) -> str:
    ids = [token for token, is_target in zip(row.input_ids[1:], row.is_target[1:], strict=True) if is_target == targets]
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("context", "continuation"), PAIRS)
def test_the_targets_are_the_continuation(context: str, continuation: str, kind: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(kind, "plain")
    row = continuation_row(context, continuation, tokenizer, 100)
    assert row.input_ids[0] == tokenizer.bos_token_id and not row.is_target[0]
    assert decoded(row, tokenizer, targets=True).strip() == continuation.strip()
    assert decoded(row, tokenizer, targets=False).strip() == context.strip()
    assert row.input_ids[1:] == tokenizer(context + continuation, add_special_tokens=False)["input_ids"]


def test_a_context_too_long_loses_its_beginning(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "plain")
    whole = continuation_row("the cat sat on the mat and the dog", " jumps over", tokenizer, 1000)
    num_targets = sum(whole.is_target)
    for max_length in range(num_targets + 1, len(whole.input_ids) + 2):
        cut = continuation_row("the cat sat on the mat and the dog", " jumps over", tokenizer, max_length)
        assert len(cut.input_ids) == min(max_length, len(whole.input_ids))
        assert cut.input_ids[0] == tokenizer.bos_token_id
        assert cut.input_ids[1:] == whole.input_ids[-len(cut.input_ids) + 1 :]
        assert sum(cut.is_target) == num_targets
    with pytest.raises(
        DoesNotFitError, match=f"the continuation alone has {num_targets} tokens, data.max_length is {num_targets}"
    ):
        continuation_row("the cat sat on the mat and the dog", " jumps over", tokenizer, num_targets)


def test_a_token_that_straddles_the_border_belongs_to_the_continuation(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "plain")
    row = continuation_row("the ca", "t sat", tokenizer, 100)
    whole = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    straddling = [index for index, token in enumerate(whole) if tokenizer.decode([token]) == " cat"]
    assert straddling and row.is_target[1 + straddling[0]]


def test_without_a_begin_of_sequence_the_end_stands_first(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", "chatml")
    assert tokenizer.bos_token_id is None
    assert continuation_row("a", " b", tokenizer, 10).input_ids[0] == tokenizer.eos_token_id


def test_a_prepared_row_is_an_item_with_its_targets_and_laws() -> None:
    row = TokenizedRow("a.json:3", "a.json", "alpaca", "f" * 32, [1, 2, 3], [False, False, True], '[{"3": 1.0}]')
    assert item_of_row(row) == EvaluationItem("a.json:3", "tokens", (ItemRow([1, 2, 3], [False, False, True], [{3: 1.0}]),))
