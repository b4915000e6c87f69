"""Laws of the report: its error names rows, figures, limits and repairs; its JSON is plain and holds no time and no path."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from components.data_contract.contract_report import ContractReport, most_first
from components.errors import DataError


def test_a_sound_report_raises_nothing(judge: Any) -> None:
    report = judge.both(judge.raw_rows())
    assert report.success
    report.raise_if_failed()


def test_the_error_names_each_critical_failure_with_count_rows_limit_and_repair(judge: Any) -> None:
    rows = judge.with_broken(judge.raw_rows(), *range(3, 10), num_secrets=1)
    rows = judge.with_broken(rows, 20, 21, 23, fault_kind="empty_turn", split="")
    rows = judge.with_broken(rows, 24, fault_kind="role_order", split="")
    rows = judge.with_broken(rows, 25, 26, fault_kind="duplicate", split="")
    rows = judge.with_broken(rows, 30, answer_is_well_formed=False)
    report = judge.both(rows, judge.with_broken(judge.tokenised_rows(34), num_turns_cut=1), max_truncated_fraction=0.0)
    with pytest.raises(DataError) as raised:
        report.raise_if_failed()
    assert raised.value.exit_code == 3
    lines = str(raised.value).split("\n")
    assert lines[0] == "The data failed 3 of 40 checks, so nothing may be trained on it."
    assert lines[1].startswith(
        "* few_rows_rejected: 4 of 40 rows (10.00 %) were rejected. At most 1 % of the rows may be rejected"
    )
    assert lines[2] == "  by kind: 3 empty_turn, 1 role_order", "rows set aside by policy are not rejected"
    assert lines[3] == "  first rows: train.json:20, train.json:21, train.json:23, train.json:24"
    assert lines[5] == (
        "* few_secrets: 7 of 40 rows (17.50 %) hold a secret. No row may hold a secret (data_contract.max_secret_fraction)."
    )
    assert lines[6] == "  first rows: train.json:3, train.json:4, train.json:5, train.json:6, train.json:7, ..."
    assert "secret in data_contract.quarantine" in lines[7] and "data_contract.max_secret_fraction (now 0)" in lines[7]
    assert lines[8].startswith("* few_rows_cut: 1 of 34 rows (2.94 %)")
    assert len(lines) == 11, "a warning is no reason to stop"


def test_nothing_left_is_explained_by_every_kind(judge: Any) -> None:
    rows = [row | {"fault_kind": "secret" if index else "too_long", "split": ""} for index, row in enumerate(judge.raw_rows())]
    with pytest.raises(DataError, match=r"a_row_is_used: 0 rows are used\. [^\n]*\n  by kind: 39 secret, 1 too_long\n"):
        judge.both(rows).raise_if_failed()


def test_warnings_and_notes_do_not_stop(judge: Any) -> None:
    rows = judge.with_broken(judge.raw_rows(), answer_is_well_formed=False)
    report = judge.both(judge.with_broken(rows, 9, fault_kind="secret", split=""))
    assert judge.names(report, "warning", "info") == ["answers_are_well_formed", "secret_sets_no_row_aside"]
    assert report.success
    report.raise_if_failed()


def test_rows_in_are_rows_used_and_rows_quarantined_and_rows_read_are_these_and_those_not_drawn(judge: Any) -> None:
    rows = judge.with_broken(judge.raw_rows(), 4, 5, fault_kind="missing", split="")
    counts = replace(judge.both(rows), num_rows_not_drawn=60).counts
    assert (counts["rows_read"], counts["rows_not_drawn"]) == (100, 60)
    assert (counts["rows_in"], counts["rows_used"], counts["rows_quarantined"]) == (40, 38, 2)


def test_a_lost_row_is_a_fault_of_ours(judge: Any) -> None:
    with pytest.raises(AssertionError, match="a row was lost: 40 rows are used, 39 are prepared"):
        judge.both(judge.raw_rows(), judge.tokenised_rows(39))


def test_the_json_is_plain_and_holds_no_time_no_path_and_no_run(judge: Any, messy_report: ContractReport) -> None:
    written = messy_report.to_json()
    text = json.dumps(written, sort_keys=True, allow_nan=False)
    assert json.loads(text) == written
    assert not re.search(r"20\d\d-?[01]\d-?[0-3]\d|run_id|batch|/work|/tmp", text)
    assert written["success"] is False and set(written) == {"success", "counts", "suites"}
    assert set(written["suites"]) == {"raw_rows", "prepared_rows"}
    first = written["suites"]["raw_rows"]["expectations"][1]
    assert (first["name"], first["num_unexpected"], first["num_judged"]) == ("few_rows_rejected", 4, 100)


def test_the_most_frequent_comes_first_and_equals_by_name() -> None:
    assert most_first({"b": 1, "c": 3, "a": 1}) == [("c", 3), ("a", 1), ("b", 1)]
