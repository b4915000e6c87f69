"""Laws of the suite over the rows in: each check fails on what breaks just it, and rows set aside count against no limit."""

import re
from typing import Any

import pytest

from components.data.faults import POLICY_KINDS, FaultKind
from components.data_contract.check import Between, Empty, OneOf
from components.data_contract.expectations import validate
from components.data_contract.raw_checks import KIND_CHECKS, REJECTED_KINDS, check_of_kind, raw_rows
from components.data_params import DataContractParams, DataParams

REJECTED_MAY_BE_HALF = {"max_rejected_fraction": 0.5}
NOTHING_ALLOWED = {key: 0.0 for key in DataContractParams.model_fields if key.startswith("max_")}
FINDINGS = [
    (FaultKind.DUPLICATE, "few_duplicates", "max_duplicate_fraction", {"repeats_row": "train.json:2"}),
    (FaultKind.NEAR_DUPLICATE, "few_near_duplicates", "max_near_duplicate_fraction", {"nearly_repeats_row": "train.json:2"}),
    (FaultKind.OOD_OVERLAP, "few_ood_overlaps", "max_ood_overlap_fraction", {"ood_overlap": "arc"}),
    (FaultKind.TEST_OVERLAP, "few_test_overlaps", "max_test_overlap_fraction", {"test_overlap": "test.jsonl:3"}),
    (FaultKind.ENCODING, "few_encoding_faults", "max_encoding_fraction", {"num_encoding_faults": 1}),
    (FaultKind.SECRET, "few_secrets", "max_secret_fraction", {"num_secrets": 3}),
    (FaultKind.PERSONAL_DATA, "little_personal_data", "max_personal_data_fraction", {"num_personal_data": 1}),
    (FaultKind.LANGUAGE, "few_other_languages", "max_other_language_fraction", {"language": "fr"}),
]
ENGLISH = {"languages": ["en", "de"]}


def test_sound_rows_pass_every_check(judge: Any) -> None:
    report = judge.raw(judge.raw_rows(), **ENGLISH, **NOTHING_ALLOWED)
    assert report.success and report.failures() == ()
    assert all(one.num_unexpected == 0 and one.unexpected_rows == () for one in report.outcomes)
    assert {"en", ""} == set(report.counts["rows_used_by_language"]), "text that says too little is in no other language"


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding[0])
def test_one_finding_fails_just_its_check_and_names_the_row(judge: Any, finding: tuple[Any, ...]) -> None:
    kind, name, key, changes = finding
    report = judge.raw(judge.with_broken(judge.raw_rows(), **changes), **ENGLISH, **NOTHING_ALLOWED)
    [failure] = report.failures()
    assert (failure.name, failure.severity, failure.num_unexpected, failure.num_judged) == (name, "critical", 1, 40)
    assert failure.unexpected_rows == (f"train.json:{judge.BROKEN}",)
    assert failure.sentence.startswith("1 of 40 rows (2.50 %) ")
    assert f"(data_contract.{key})" in failure.rule
    assert f"({kind} in data_contract.quarantine)" in failure.repair
    assert f"data_contract.{key} (now 0) in params.yaml" in failure.repair


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding[0])
def test_the_limit_of_a_finding_may_be_reached_but_not_passed(judge: Any, finding: tuple[Any, ...]) -> None:
    _, name, key, changes = finding
    limits = ENGLISH | NOTHING_ALLOWED | {key: 0.1}
    trained = [index for index, row in enumerate(judge.raw_rows()) if row["split"] == "train"]
    rows = judge.with_broken(judge.raw_rows(), *trained[:4], **changes)
    assert judge.names(judge.raw(rows, **limits)) == []
    assert judge.names(judge.raw(judge.with_broken(rows, trained[4], **changes), **limits)) == [name]


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding[0])
def test_a_row_set_aside_counts_neither_as_rejected_nor_against_the_limit_of_its_finding(
    judge: Any, finding: tuple[Any, ...]
) -> None:
    kind, _, _, changes = finding
    rows = judge.with_broken(judge.raw_rows(), fault_kind=kind, split="", **changes)
    report = judge.raw(rows, **ENGLISH, **NOTHING_ALLOWED, quarantine=[kind])
    [failure] = report.failures()
    assert report.success
    assert (failure.name, failure.severity) == (check_of_kind(kind), "info")
    assert failure.unexpected_rows == (f"train.json:{judge.BROKEN}",)
    assert report.counts["quarantined_by_kind"] == {kind: 1}


@pytest.mark.parametrize("kind", REJECTED_KINDS)
def test_a_rejected_row_fails_the_limit_and_is_told_by_its_kind_and_by_nothing_else(judge: Any, kind: FaultKind) -> None:
    found = {key: value for _, _, _, changes in FINDINGS for key, value in changes.items()}
    rows = judge.with_broken(judge.raw_rows(), fault_kind=kind, split="", **found)
    report = judge.raw(rows, **ENGLISH, **NOTHING_ALLOWED)
    limit, by_kind = report.failures()
    assert (limit.name, limit.severity) == ("few_rows_rejected", "critical")
    assert (by_kind.name, by_kind.severity) == (KIND_CHECKS[kind][0], "warning")
    assert limit.unexpected_rows == by_kind.unexpected_rows == (f"train.json:{judge.BROKEN}",)
    assert judge.raw(rows, **ENGLISH, **REJECTED_MAY_BE_HALF).success


@pytest.mark.parametrize(("num_rejected", "fails"), [(0, False), (4, False), (5, True)])
def test_rejected_rows_are_counted_against_the_rows_in(judge: Any, num_rejected: int, fails: bool) -> None:
    rows = judge.raw_rows()
    if num_rejected:
        rows = judge.with_broken(rows, *range(num_rejected), fault_kind="missing", split="")
    report = judge.raw(rows, max_rejected_fraction=0.1)
    assert judge.names(report, "critical") == (["few_rows_rejected"] if fails else [])
    [outcome] = [one for one in report.outcomes if one.name == "few_rows_rejected"]
    assert outcome.sentence == f"{num_rejected} of 40 rows ({num_rejected * 2.5:.2f} %) were rejected."


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("splits_share_no_row", {"repeats_row_of_other_split": "train.json:1"}),
        ("answers_are_well_formed", {"answer_is_well_formed": False}),
    ],
)
def test_what_only_flatters_or_costs_a_score_is_a_warning(judge: Any, name: str, changes: dict[str, Any]) -> None:
    report = judge.raw(judge.with_broken(judge.raw_rows(), **changes), **NOTHING_ALLOWED)
    assert report.success and judge.names(report, "warning") == [name] == judge.names(report)


def test_the_answer_format_is_asked_only_of_rows_that_have_one(judge: Any) -> None:
    rows = [row | {"answer_is_well_formed": None} for row in judge.raw_rows()]
    assert judge.names(judge.raw(rows)) == []
    [failure] = judge.raw(judge.with_broken(rows, answer_is_well_formed=False)).failures()
    assert failure.sentence.startswith("1 of 1 rows (100.00 %)")


@pytest.mark.parametrize("changes", [{"ood_overlap": "arc"}, {"test_overlap": "test.jsonl:3"}])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_overlap_is_a_leak_only_in_a_row_that_is_trained_on(judge: Any, changes: dict[str, Any], split: str) -> None:
    assert judge.names(judge.raw(judge.with_broken(judge.raw_rows(), split=split, **changes))) == []


def test_an_exact_repeat_is_no_near_one_too(judge: Any) -> None:
    rows = judge.with_broken(judge.raw_rows(), repeats_row="train.json:2", nearly_repeats_row="train.json:2")
    assert judge.names(judge.raw(rows, **NOTHING_ALLOWED)) == ["few_duplicates"]


def test_any_language_will_do_where_none_is_asked_for(judge: Any) -> None:
    rows = judge.with_broken(judge.raw_rows(), language="fr")
    report = judge.raw(rows, **NOTHING_ALLOWED)
    assert report.failures() == () and "few_other_languages" not in [one.name for one in report.outcomes]
    assert report.counts["rows_used_by_language"] == {"": 10, "en": 29, "fr": 1}


def test_no_used_row_fails_only_that_if_all_may_be_rejected(judge: Any) -> None:
    rows = [row | {"fault_kind": "too_long", "split": ""} for row in judge.raw_rows()]
    report = judge.raw(rows, max_rejected_fraction=1.0)
    assert judge.names(report, "critical") == ["a_row_is_used"]
    assert report.failures("critical")[0].sentence == "0 rows are used."


@pytest.mark.parametrize("frames", [[], ["empty"]], ids=["no block", "an empty block"])
def test_no_row_at_all_fails_only_that(judge: Any, frames: list[str]) -> None:
    report = validate([judge.frame([], judge.RAW) for _ in frames], raw_rows(judge.limits()))
    assert judge.names(report) == ["a_row_is_used"]
    assert report.counts["rows_in"] == 0


def test_the_counts_say_what_became_of_the_rows_of_each_source(judge: Any) -> None:
    rows = judge.with_broken(judge.raw_rows(), 1, 3, fault_kind="empty_turn", split="")
    rows = judge.with_broken(rows, 4, fault_kind="secret", split="")
    counts = judge.raw(rows).counts
    assert (counts["rows_in"], counts["rows_used"], counts["rows_quarantined"]) == (40, 37, 3)
    assert counts["quarantined_by_kind"] == {"empty_turn": 2, "secret": 1}
    assert counts["by_source"] == {
        "more.jsonl": {"rows_in": 20, "rows_used": 19, "rows_quarantined": 1},
        "train.json": {"rows_in": 20, "rows_used": 18, "rows_quarantined": 2},
    }
    assert sum(counts["rows_used_by_split"].values()) == sum(counts["rows_used_by_schema"].values()) == 37


def test_every_kind_of_fault_has_a_check_and_every_fault_its_repair() -> None:
    assert set(KIND_CHECKS) | set(POLICY_KINDS) == set(FaultKind)
    names = {one.name for one in raw_rows(DataContractParams()).checks}
    assert {check_of_kind(kind) for kind in FaultKind} <= names
    assert all(one.repair and one.fault for one in raw_rows(DataContractParams()).checks)


def test_every_params_key_that_a_check_names_exists_and_every_limit_is_named() -> None:
    checks = raw_rows(DataContractParams(languages=("en",))).checks
    text = " ".join(one.rule + " " + one.repair for one in checks)
    contract = set(re.findall(r"data_contract\.(\w+)", text))
    assert contract <= set(DataContractParams.model_fields)
    assert {key for key in NOTHING_ALLOWED if key != "max_truncated_fraction"} | {"quarantine", "languages"} <= contract
    assert set(re.findall(r"\bdata\.(\w+)", text)) <= set(DataParams.model_fields)
    assert {type(one.expected) for one in checks} >= {Between, Empty, OneOf}


def test_a_kind_that_nobody_knows_is_a_fault_of_ours(judge: Any) -> None:
    with pytest.raises(AssertionError, match="no kind of fault"):
        judge.raw(judge.with_broken(judge.raw_rows(), fault_kind="gone"))
