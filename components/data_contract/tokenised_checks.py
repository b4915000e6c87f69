"""The suite `prepared_rows`: what is asked of the rows of tokens that the training sees, all of them rows that are used."""

from typing import TYPE_CHECKING

from components.data.tokenized import SPLITS
from components.data_contract.check import Between, Check, Counts, OneOf, Suite, at_most
from components.data_params import DataContractParams, DataParams

if TYPE_CHECKING:
    from pandas import DataFrame

COMPLETE = (
    "row_id", "split", "source", "num_tokens", "num_target_tokens", "end_of_turn_is_target", "num_turns_cut",
    "targets_decode_to_text",
)  # fmt: skip
"""Columns of the TOKENISED frame."""


def prepared_rows(limits: DataContractParams, data: DataParams) -> Suite:
    """The checks over the TOKENISED frame, one row per row that is used."""
    checks = (*_splits(data), *_lengths(limits, data), *_targets())
    return Suite("prepared_rows", "Rows of tokens", checks, COMPLETE, (), lambda block: block, _count, _totals)


def _splits(data: DataParams) -> tuple[Check, ...]:
    keys = {
        "train": "lower data.validation_fraction or data.test_fraction",
        "validation": f"raise data.validation_fraction (now {data.validation_fraction:.10g})",
        "test": f"raise data.test_fraction (now {data.test_fraction:.10g}), or put a test set at data.test_path",
    }
    return tuple(
        Check(f"{split}_is_not_empty", "critical", f"num_{split}_rows", Between(1, None), f"The {split} split has a row.",
              f"are in the {split} split", f"add rows, or {keys[split]} in params.yaml", of="totals")
        for split in SPLITS
    )  # fmt: skip


def _lengths(limits: DataContractParams, data: DataParams) -> tuple[Check, ...]:
    longest, limit = data.max_length, limits.max_truncated_fraction
    lengthen = f"raise data.max_length (now {longest}) in params.yaml, or shorten or remove these rows"
    return (
        Check("target_tokens_in_range", "critical", "num_target_tokens", Between(1, longest),
              f"Every row has 1 to {longest} target tokens.", f"have no target token or more than {longest}",
              f"a row without target tokens teaches nothing (an empty answer, or one that was cut off): {lengthen}"),
        Check("rows_fit", "critical", "num_tokens", Between(0, longest),
              f"Every row has at most {longest} tokens (data.max_length).", f"have more than {longest} tokens", lengthen),
        Check("few_rows_cut", "critical", "num_turns_cut", OneOf((0,)),
              f"{at_most(limit)} may lose their last turns to data.max_length (data_contract.max_truncated_fraction).",
              "lost their last turns",
              f"{lengthen}, or raise data_contract.max_truncated_fraction (now {limit:.10g}) in params.yaml", limit),
    )  # fmt: skip


def _targets() -> tuple[Check, ...]:
    return (
        Check("end_of_turn_is_target", "critical", "end_of_turn_is_target", OneOf((True,)),
              "The end of every assistant turn is a target token.", "never teach the model to stop",
              "set data.chat_template in params.yaml to one that closes the assistant's turn"),
        Check("targets_decode_to_text", "critical", "targets_decode_to_text", OneOf((True,)),
              "Decoding the target tokens gives the assistant's text back.", "do not decode to the assistant's text",
              "set data.chat_template in params.yaml to one that leaves the text as it is, or take another tokenizer"),
    )  # fmt: skip


def _count(block: "DataFrame") -> Counts:
    splits = {split: block["split"] == split for split in SPLITS}
    assert sum(int(of_split.sum()) for of_split in splits.values()) == len(block), (
        f"no split: {set(block['split'].unique()) - set(SPLITS)}"
    )
    return {
        "rows": {split: int(of_split.sum()) for split, of_split in splits.items()},
        "rows_cut": int((block["num_turns_cut"] > 0).sum()),
        "tokens": {split: int(block["num_tokens"][of_split].sum()) for split, of_split in splits.items()},
        "target_tokens": {split: int(block["num_target_tokens"][of_split].sum()) for split, of_split in splits.items()},
    }


def _totals(counts: Counts) -> dict[str, int]:
    return {f"num_{split}_rows": counts["rows"][split] for split in SPLITS}
