"""Evaluation items: what is scored, and how its tokens were made.

An item has one row of tokens or, for multiple choice, one per option. `kind` says how accuracy is counted:
tokens (share of scored target tokens that are the model's first choice), exact (1 when all are), choice (1 when the right
option has the highest summed logprob).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from components.data.tokenized import TokenizedRow
from components.data.unrenderable import DoesNotFitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["tokens", "exact", "choice"]
Law = dict[int, float]
"""Token id -> probability."""


@dataclass(frozen=True)
class ItemRow:
    """Token ids, which of them are targets (never the first), and the true law of each target where it is known."""

    input_ids: list[int]
    is_target: list[bool]
    laws: list[Law] | None = None


@dataclass(frozen=True)
class EvaluationItem:
    item_id: str
    kind: Kind
    rows: tuple[ItemRow, ...]
    gold: int = 0


def item_of_row(row: TokenizedRow) -> EvaluationItem:
    """A rendered conversation as an item: every assistant token is a target."""
    return EvaluationItem(row.row_id, "tokens", (ItemRow(row.input_ids, row.is_target, row.true_laws()),))


def start_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """What stands before the first scored token: the begin of sequence, or its end where the tokenizer has no begin."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert isinstance(start, int), "a prepared tokenizer has an end of sequence"
    return start


def continuation_row(context: str, continuation: str, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> ItemRow:
    """Tokens of context + continuation, the continuation's as targets; a context that is too long loses its beginning.

    Tokenised together, as the model would read it; a token that straddles the border belongs to the continuation.
    """
    encoding = tokenizer(context + continuation, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoding["input_ids"])
    is_target = [end > len(context) for _, end in encoding["offset_mapping"]]
    room = max_length - 1
    if sum(is_target) > room:
        raise DoesNotFitError(f"the continuation alone has {sum(is_target)} tokens, data.max_length is {max_length}")
    return ItemRow([start_token(tokenizer), *ids[-room:]], [False, *is_target[-room:]])
