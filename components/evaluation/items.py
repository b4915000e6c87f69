"""Evaluation items: what is scored, and how its tokens were made.

An item has one row of tokens or, for multiple choice, one per option, or none where only a generated answer counts. `kind`
says how accuracy is counted: tokens and text (share of scored target tokens that are the model's first choice), exact (1 when
all are), choice (1 when the right option has the highest summed logprob), rules (1 when the answer keeps all of them).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from components.data.faults import FaultKind
from components.data.instruction_rules import Rule
from components.data.tokenized import TokenizedRow
from components.data.unrenderable import DoesNotFitError, UnrenderableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["tokens", "exact", "choice", "rules", "text"]
Law = dict[int, float]
"""Token id -> probability."""


@dataclass(frozen=True)
class ItemRow:
    """Token ids, which of them are targets (never the first), and the true law of each target where it is known."""

    input_ids: list[int]
    is_target: list[bool]
    laws: list[Law] | None = None


@dataclass(frozen=True)
class Prompt:
    """Token ids to be answered freely; the answer is held against `expected`, a final answer, or has to keep all rules."""

    input_ids: list[int]
    expected: str | None = None
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class EvaluationItem:
    item_id: str
    kind: Kind
    rows: tuple[ItemRow, ...]
    gold: int = 0
    prompt: Prompt | None = None

    @property
    def gold_rows(self) -> tuple[ItemRow, ...]:
        """The row whose tokens count for the nll; none where nothing is scored."""
        return self.rows[self.gold : self.gold + 1]


class EvaluationSet(list[EvaluationItem]):
    """The items of a set, and how many rows before the last of them could not be asked, by kind (components.data.faults)."""

    def __init__(self, items: Iterable[EvaluationItem] = (), left_out: dict[str, int] | None = None) -> None:
        super().__init__(items)
        self.left_out = left_out or {}


def item_of_row(row: TokenizedRow, prompt: Prompt | None = None) -> EvaluationItem:
    """A rendered conversation as an item: every assistant token is a target."""
    return EvaluationItem(row.row_id, "tokens", (ItemRow(row.input_ids, row.is_target, row.true_laws()),), prompt=prompt)


def start_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """What stands before the first scored token: the begin of sequence, or its end where the tokenizer has no begin."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert isinstance(start, int), "a prepared tokenizer has an end of sequence"
    return start


def continuation_row(context: str, continuation: str, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> ItemRow:
    """Tokens of context + continuation, the continuation's as targets; a context that is too long loses its beginning.

    Tokenised together, as the model would read it; a token that straddles the border belongs to the continuation, and so do
    spaces at the end of the context (as in lm-evaluation-harness).
    """
    encoding = tokenizer(context + continuation, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoding["input_ids"])
    border = len(context.rstrip())
    is_target = [end > border for _, end in encoding["offset_mapping"]]
    room = max_length - 1
    unknown = tokenizer.unk_token_id
    if not any(is_target) or any(token == unknown and target for token, target in zip(ids, is_target, strict=True)):
        raise UnrenderableError(f"the tokenizer cannot say {continuation!r:.80}", FaultKind.LOSSY)
    if sum(is_target) > room:
        raise DoesNotFitError(f"the continuation alone has {sum(is_target)} tokens, data.max_length is {max_length}")
    return ItemRow([start_token(tokenizer), *ids[-room:]], [False, *is_target[-room:]])
