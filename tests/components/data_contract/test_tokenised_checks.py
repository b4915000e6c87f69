"""Laws of the suite over the rows of tokens: what the training sees fits, ends, teaches something, and is in every split."""

import re
from typing import Any

import pytest

from components.data_contract.expectations import validate
from components.data_contract.tokenised_checks import prepared_rows
from components.data_params import DataContractParams, DataParams

NO_ROW_CUT = {"max_truncated_fraction": 0.0}


def test_sound_rows_pass_every_check(judge: Any) -> None:
    report = judge.tokenised(judge.tokenised_rows(), **NO_ROW_CUT)
    assert report.success and report.failures() == () and len(report.outcomes) == 8


@pytest.mark.parametrize(
    ("name", "changes", "repair"),
    [
        ("target_tokens_in_range", {"num_target_tokens": 0}, "data.max_length (now 64)"),
        ("target_tokens_in_range", {"num_target_tokens": 65}, "data.max_length (now 64)"),
        ("rows_fit", {"num_tokens": 65}, "data.max_length (now 64)"),
        ("few_rows_cut", {"num_turns_cut": 2}, "data_contract.max_truncated_fraction (now 0) in params.yaml"),
        ("end_of_turn_is_target", {"end_of_turn_is_target": False}, "data.chat_template"),
        ("targets_decode_to_text", {"targets_decode_to_text": False}, "data.chat_template"),
    ],
)
def test_one_broken_row_fails_just_its_check_and_is_named(judge: Any, name: str, changes: dict[str, Any], repair: str) -> None:
    report = judge.tokenised(judge.with_broken(judge.tokenised_rows(), **changes), **NO_ROW_CUT)
    [failure] = report.failures()
    assert (failure.name, failure.severity, failure.num_unexpected) == (name, "critical", 1)
    assert failure.unexpected_rows == (f"train.json:{judge.BROKEN}",)
    assert repair in failure.repair and "params.yaml" in failure.repair


def test_the_bounds_themselves_are_allowed(judge: Any) -> None:
    rows = judge.with_broken(judge.tokenised_rows(), num_target_tokens=64, num_tokens=64)
    assert judge.names(judge.tokenised(judge.with_broken(rows, 8, num_target_tokens=1))) == []


def test_a_quarter_of_the_rows_may_be_cut_and_no_more(judge: Any) -> None:
    rows = judge.with_broken(judge.tokenised_rows(), *range(10), num_turns_cut=1)
    assert judge.names(judge.tokenised(rows)) == []
    assert judge.names(judge.tokenised(judge.with_broken(rows, 10, num_turns_cut=3))) == ["few_rows_cut"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_fails_just_that(judge: Any, split: str) -> None:
    report = judge.tokenised([row for row in judge.tokenised_rows() if row["split"] != split])
    [failure] = report.failures()
    assert (failure.name, failure.severity) == (f"{split}_is_not_empty", "critical")
    assert failure.sentence == f"0 rows are in the {split} split."


def test_no_row_at_all_empties_every_split(judge: Any) -> None:
    report = validate([], prepared_rows(judge.limits(), judge.DATA))
    assert judge.names(report) == ["train_is_not_empty", "validation_is_not_empty", "test_is_not_empty"]


def test_the_counts_are_of_rows_and_tokens_by_split(judge: Any) -> None:
    rows = judge.with_broken(judge.tokenised_rows(), num_turns_cut=2, num_target_tokens=9)
    counts = judge.tokenised(rows).counts
    assert counts["rows"] == {"train": 32, "validation": 4, "test": 4}
    assert counts["rows_cut"] == 1
    assert counts["target_tokens"]["train"] == 32 * 5 + 4
    assert sum(counts["tokens"].values()) == sum(row["num_tokens"] for row in rows)


def test_a_row_of_no_split_is_a_fault_of_ours(judge: Any) -> None:
    with pytest.raises(AssertionError, match="no split"):
        judge.tokenised(judge.with_broken(judge.tokenised_rows(), split=""))


def test_every_params_key_that_a_check_names_exists() -> None:
    text = " ".join(one.rule + " " + one.repair for one in prepared_rows(DataContractParams(), DataParams()).checks)
    assert set(re.findall(r"data_contract\.(\w+)", text)) == {"max_truncated_fraction"}
    assert set(re.findall(r"\bdata\.(\w+)", text)) <= set(DataParams.model_fields)
