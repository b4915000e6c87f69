"""Final answers: what stands behind the last `####`, where GSM8K puts it, and when two of them are the same."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from components.evaluation.generation import Answer, generate_answers
from components.evaluation.items import EvaluationItem, ItemRow, Prompt
from components.params import EvaluationParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NUMBER = re.compile(r"([-+−]?)\$?([-+−]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?![\d,]*\d)", re.ASCII)


def final_answer(text: str) -> str | None:
    """The line behind the last `####`; None where there is none."""
    _, mark, after = text.rpartition("####")
    return after.strip(" \t").partition("\n")[0].strip() or None if mark else None


def is_same_answer(said: str | None, expected: str) -> bool:
    """Numbers are compared as numbers, and what follows one is passed over (`#### 18 dollars`); other answers as texts."""
    if said is None:
        return False
    wanted = _number(expected)
    return said.strip() == expected.strip() if wanted is None else _number(said) == wanted


def _number(text: str) -> Decimal | None:
    """`-$1,000.50` at the start of a text."""
    found = _NUMBER.match(text.strip())
    if found is None:
        return None
    sign = -1 if (found[1] + found[2]) in ("-", "−") else 1
    return sign * Decimal(found[3].replace(",", "").rstrip("."))


def prompt_of_row(row: ItemRow, tokenizer: "PreTrainedTokenizerBase") -> Prompt | None:
    """What stands before the last answer of a conversation, if that ends in a final answer to be hit."""
    end = max((place for place, is_target in enumerate(row.is_target) if is_target), default=-1) + 1
    begin = end
    while begin and row.is_target[begin - 1]:
        begin -= 1
    answer = tokenizer.decode(row.input_ids[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    expected = final_answer(str(answer))
    return None if expected is None else Prompt(row.input_ids[:begin], expected)


def answer_items(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[EvaluationItem],
    params: EvaluationParams,
    name: str,
) -> list[Answer | None]:
    """The model's own answer to every item that has a prompt; None for the others."""
    asked = [item.prompt.input_ids for item in items if item.prompt is not None]
    answers = iter(
        generate_answers(
            model,
            tokenizer,
            asked,
            max_new_tokens=params.max_new_tokens,
            batch_size=params.generation_batch_size,
            name=name,
        )
    )
    return [None if item.prompt is None else next(answers) for item in items]
