"""Laws of the gate: each check fails on what breaks just it and names the row; pages load nothing; a crash is no verdict."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import ROOT
from components.data import validation
from components.data_contract.validation import (
    CrashedExpectationError,
    RowSummary,
    ValidationReport,
    validate_rows,
    write_data_docs,
)
from components.errors import BallastError, DataError
from components.params import DataParams

LIMITS = DataParams(max_length=64, max_duplicate_fraction=0.1, max_ood_overlap_fraction=0.0, max_rejected_fraction=0.1)
BROKEN = 7
"""The place of the row that a test breaks."""


def row(index: int, **changes: Any) -> RowSummary:
    sound = RowSummary(
        row_id=f"train.json:{index}",
        split="train",
        source="train.json",
        schema="alpaca",
        num_turns=1,
        num_tokens=20 + index % 40,
        num_target_tokens=5,
        starts_with_user=True,
        ends_with_assistant=True,
        end_of_turn_is_target=True,
        prompt_characters=50,
        target_characters=30,
        fingerprint=f"{index:032x}",
        num_ood_overlaps=0,
        has_replacement_character=False,
        answer_is_well_formed=True if index % 3 == 0 else None,
    )
    return replace(sound, **changes)


def sound_rows(num_rows: int = 40) -> list[RowSummary]:
    return [row(index) for index in range(num_rows)]


def with_broken(**changes: Any) -> list[RowSummary]:
    rows = sound_rows()
    rows[BROKEN] = replace(rows[BROKEN], **changes)
    return rows


def check(rows: list[RowSummary], *, num_rejected: int = 0, limits: DataParams = LIMITS) -> ValidationReport:
    return validate_rows(rows, num_rows_in=len(rows) + num_rejected, num_rejected=num_rejected, limits=limits)


def failed_names(report: ValidationReport) -> list[str]:
    return [outcome.name for outcome in report.failures()]


@pytest.fixture(scope="module")
def messy_report() -> ValidationReport:
    """Something of everything, under file names that would be markup if a page took them at their word."""
    rows = [row(index, row_id=f'<img src="http://evil.example/{index}">&amp;.json:{index}') for index in range(100)]
    rows[3] = replace(rows[3], num_target_tokens=0)
    rows[4] = replace(rows[4], num_tokens=65, fingerprint=rows[2].fingerprint, split="test")
    rows[30:60] = [replace(one, has_replacement_character=True, fingerprint=rows[5].fingerprint) for one in rows[30:60]]
    rows[9] = replace(rows[9], answer_is_well_formed=False)
    return check(rows, num_rejected=50)


def test_a_clean_frame_passes_every_check() -> None:
    report = check(sound_rows())
    assert report.success
    assert failed_names(report) == []
    assert len(report.outcomes) == 12
    assert all(outcome.num_unexpected == 0 and outcome.unexpected_rows == () for outcome in report.outcomes)
    report.raise_if_failed()


@pytest.mark.parametrize(
    ("name", "severity", "changes"),
    [
        ("target_tokens_in_range", "critical", {"num_target_tokens": 0}),
        ("target_tokens_in_range", "critical", {"num_target_tokens": 65}),
        ("rows_fit", "critical", {"num_tokens": 65}),
        ("starts_with_user", "critical", {"starts_with_user": False}),
        ("ends_with_assistant", "critical", {"ends_with_assistant": False}),
        ("end_of_turn_is_target", "critical", {"end_of_turn_is_target": False}),
        ("no_ood_overlap", "critical", {"num_ood_overlaps": 2}),
        ("no_replacement_characters", "warning", {"has_replacement_character": True}),
        ("answers_well_formed", "warning", {"answer_is_well_formed": False}),
    ],
)
def test_one_broken_row_fails_just_its_check_and_is_named(name: str, severity: str, changes: dict[str, Any]) -> None:
    report = check(with_broken(**changes))
    [failure] = report.failures()
    assert (failure.name, failure.severity, failure.num_unexpected) == (name, severity, 1)
    assert failure.unexpected_rows == (f"train.json:{BROKEN}",)
    assert report.success == (severity == "warning")


def test_the_bounds_themselves_are_allowed() -> None:
    assert failed_names(check(with_broken(num_target_tokens=64, num_tokens=64))) == []
    assert failed_names(check(with_broken(num_target_tokens=1))) == []


def test_no_row_at_all_fails_only_that() -> None:
    report = check([])
    assert failed_names(report) == ["rows_not_empty"]
    with pytest.raises(DataError, match=r"rows_not_empty: 0 rows are left"):
        report.raise_if_failed()


def test_a_repeat_is_the_later_row_not_the_first() -> None:
    rows = with_broken(fingerprint=row(2).fingerprint)
    report = check(rows, limits=LIMITS.model_copy(update={"max_duplicate_fraction": 0.0}))
    [failure] = report.failures()
    assert (failure.name, failure.unexpected_rows) == ("rows_not_repeated", (f"train.json:{BROKEN}",))


def test_a_row_of_two_splits_is_a_warning() -> None:
    [failure] = check(with_broken(fingerprint=row(2).fingerprint, split="test")).failures()
    assert (failure.name, failure.severity) == ("splits_share_no_row", "warning")
    assert failure.unexpected_rows == (f"train.json:{BROKEN}",)


@pytest.mark.parametrize("tenths", [0, 3, 7, 10])  # 1 - 0.7 is more than 3 / 10 in floating point
@pytest.mark.parametrize(
    ("key", "name", "changes"),
    [
        ("max_duplicate_fraction", "rows_not_repeated", {"fingerprint": row(0).fingerprint}),
        ("max_ood_overlap_fraction", "no_ood_overlap", {"num_ood_overlaps": 1}),
    ],
)
def test_a_fraction_may_be_reached_but_not_passed(key: str, name: str, changes: dict[str, Any], tenths: int) -> None:
    limits = LIMITS.model_copy(update={"max_duplicate_fraction": 1.0} | {key: tenths / 10})
    rows = [row(index, **changes if 0 < index <= tenths else {}) for index in range(11)][:10]
    first_unbroken = rows[tenths + 1 :][:1]
    assert failed_names(check(rows, limits=limits)) == []
    for one in first_unbroken:
        rows[rows.index(one)] = replace(one, **changes)
        assert failed_names(check(rows, limits=limits)) == [name]


@pytest.mark.parametrize(("num_rejected", "fails"), [(0, False), (4, False), (5, True)])
def test_rejected_rows_are_counted_against_the_rows_read(num_rejected: int, fails: bool) -> None:
    report = check(sound_rows(36), num_rejected=num_rejected)
    assert failed_names(report) == (["few_rows_rejected"] if fails else [])
    outcome = report.outcomes[-1]
    assert outcome.num_unexpected == num_rejected
    assert outcome.sentence.startswith(f"{num_rejected} of {36 + num_rejected} rows")


def test_at_most_twenty_rows_are_named_and_all_are_counted() -> None:
    report = check([replace(one, starts_with_user=False) for one in sound_rows(50)])
    [failure] = report.failures()
    assert failure.unexpected_rows == tuple(f"train.json:{index}" for index in range(20))
    assert (failure.num_unexpected, failure.unexpected_percent) == (50, 100.0)


def test_the_answer_format_is_asked_only_of_rows_that_have_one() -> None:
    rows = [replace(one, answer_is_well_formed=None) for one in sound_rows()]
    assert failed_names(check(rows)) == []
    rows[BROKEN] = replace(rows[BROKEN], answer_is_well_formed=False)
    [failure] = check(rows).failures()
    assert failure.sentence.startswith("1 of 1 rows (100.00 %)")


def test_rows_of_one_id_are_both_judged() -> None:
    rows = [replace(one, row_id="same:1", num_tokens=65) for one in sound_rows(3)]
    [failure] = check(rows).failures()
    assert failure.unexpected_rows == ("same:1", "same:1", "same:1")


def test_the_error_names_each_critical_failure_with_count_rows_limit_and_key() -> None:
    rows = [replace(one, num_tokens=65) if index < 7 else one for index, one in enumerate(sound_rows())]
    rows[20] = replace(rows[20], num_ood_overlaps=1, has_replacement_character=True)
    with pytest.raises(DataError) as raised:
        check(rows, num_rejected=10).raise_if_failed()
    assert raised.value.exit_code == 3
    message = str(raised.value)
    assert message.startswith("The data failed 3 of 12 checks")
    assert "* rows_fit: 7 of 40 rows (17.50 %)" in message
    assert "train.json:0, train.json:1, train.json:2, train.json:3, train.json:4, ...\n" in message
    assert "raise data.max_length (now 64) in params.yaml" in message
    assert "* no_ood_overlap: 1 of 40 rows (2.50 %)" in message and "first rows: train.json:20\n" in message
    assert "No row may share text with an OOD item (data.max_ood_overlap_fraction)." in message
    assert "* few_rows_rejected: 10 of 50 rows (20.00 %)" in message
    assert "At most 10 % of the rows may be rejected (data.max_rejected_fraction)." in message
    assert "replacement" not in message, "a warning is no reason to stop"


def test_every_params_key_that_a_repair_names_exists() -> None:
    checks = [*validation._row_checks(LIMITS), validation._rejection_check(LIMITS)]
    named = {key for one in checks for key in re.findall(r"data\.(\w+)", one.rule + one.repair)}
    assert named <= set(DataParams.model_fields)
    assert {"max_length", "max_duplicate_fraction", "max_ood_overlap_fraction", "max_rejected_fraction"} <= named


@pytest.mark.parametrize("broken", ["column", "type"])
def test_a_crashed_expectation_is_an_error_of_ours_and_not_of_the_data(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sound_rows()
    if broken == "type":
        rows[BROKEN] = replace(rows[BROKEN], num_tokens="many")  # type: ignore[arg-type]
    else:
        sound = validation._row_checks(LIMITS)
        checks = tuple(replace(one, column="no_such_column") if one.name == "rows_fit" else one for one in sound)
        monkeypatch.setattr(validation, "_row_checks", lambda limits: checks)
    with pytest.raises(CrashedExpectationError, match=r"'rows_fit' crashed, so nothing is known .*Error") as raised:
        check(rows)
    assert isinstance(raised.value, BallastError) and not isinstance(raised.value, DataError)


def test_a_missing_value_is_never_passed_over() -> None:
    with pytest.raises(AssertionError, match="num_tokens is None"):
        check(with_broken(num_tokens=None))


def test_the_report_is_plain_json_without_time_or_run(messy_report: ValidationReport) -> None:
    text = json.dumps(messy_report.to_json(), sort_keys=True, allow_nan=False)
    assert json.loads(text) == messy_report.to_json()
    assert not re.search(r"20\d\d-?[01]\d-?[0-3]\d|run_id|batch", text)
    assert messy_report.to_json()["success"] is False


def test_the_pages_load_nothing(messy_report: ValidationReport, tmp_path: Path) -> None:
    write_data_docs(messy_report, tmp_path)
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert set(pages) == {"index.html", "validation.html"}
    for page in pages.values():
        tags = "\n".join(re.findall(r"<[a-zA-Z][^>]*>", page))
        assert not re.search(r"<(script|link|img|iframe|object|embed|base|svg|form|video|audio)\b", tags, re.IGNORECASE)
        assert not re.search(r"\b(src|srcset|action|background|on\w+)\s*=", tags, re.IGNORECASE)
        assert not re.search(r"@import|url\(|http-equiv=.refresh", page, re.IGNORECASE)
        assert "default-src 'none'" in page  # and the browser is told so
        links = re.findall(r'href="([^"]*)"', tags)
        assert all(link.startswith("#section-") or link in pages for link in links), links


def test_the_pages_name_checks_rows_and_repairs(messy_report: ValidationReport, tmp_path: Path) -> None:
    write_data_docs(messy_report, tmp_path)
    index, details = ((tmp_path / name).read_text(encoding="utf-8") for name in ("index.html", "validation.html"))
    for outcome in messy_report.outcomes:
        assert outcome.name in index
        assert validation.escape(outcome.rule, quote=False) in details
    for page in (index, details):
        assert "<img" not in page
        assert re.search(r"&lt;img src=[^<]*evil.example/3[^<]*&gt;&amp;amp;.json:3<", page)
    assert "Repair:" in index and index.index("target_tokens_in_range") < index.index("rows_not_empty")


def test_a_page_that_is_a_pass_says_so_although_a_warning_failed(tmp_path: Path) -> None:
    write_data_docs(check(with_broken(has_replacement_character=True)), tmp_path)
    assert "The data passed: 0 critical failures, 1 warnings." in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Succeeded" in (tmp_path / "validation.html").read_text(encoding="utf-8")


def test_writing_twice_changes_no_byte(messy_report: ValidationReport, tmp_path: Path) -> None:
    write_data_docs(messy_report, tmp_path / "first")
    time.sleep(1.1)
    write_data_docs(messy_report, tmp_path / "second")
    for name in ("index.html", "validation.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


WRITER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from components.data_contract.validation import RowSummary, validate_rows, write_data_docs
from components.params import DataParams
rows = [RowSummary(**one) for one in json.loads(Path(sys.argv[1]).read_text())]
report = validate_rows(rows, num_rows_in=len(rows), num_rejected=0, limits=DataParams())
write_data_docs(report, Path(sys.argv[2]))
Path(sys.argv[2], "report.json").write_text(json.dumps(report.to_json()))
"""


def test_the_same_rows_give_the_same_bytes_in_every_process_and_nothing_else_is_written_or_said(tmp_path: Path) -> None:
    rows = [vars(row(index, fingerprint=f"{index % 13}", num_ood_overlaps=index % 3)) for index in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name, seed, zone, language in (("a", "1", "UTC", "C"), ("b", "2", "Asia/Tokyo", "de_DE.UTF-8")):
        home = tmp_path / f"home_{name}"
        home.mkdir()
        settings = {"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": language, "HOME": str(home), "TMPDIR": str(home)}
        command = [sys.executable, "-c", WRITER, str(tmp_path / "rows.json"), str(tmp_path / name)]
        environment = os.environ | settings | {"PYTHONPATH": str(ROOT)}
        finished = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=True)
        assert finished.stdout == finished.stderr == ""
        assert list(home.iterdir()) == []
    for file in ("report.json", "index.html", "validation.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_is_sent_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: calls.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: calls.append(arguments) or [])
    check(sound_rows())
    assert calls == []
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_fifty_thousand_rows_take_seconds_even_where_every_row_fails_every_check() -> None:
    check(sound_rows(1))  # the import is not counted
    everything = {"num_target_tokens": 0, "num_tokens": 65, "starts_with_user": False, "ends_with_assistant": False}
    everything |= {"end_of_turn_is_target": False, "fingerprint": "same", "num_ood_overlaps": 1}
    everything |= {"has_replacement_character": True, "answer_is_well_formed": False}
    for changes in ({}, everything):
        rows = [row(index, **changes) for index in range(50_000)]
        started = time.process_time()
        check(rows)
        assert time.process_time() - started < 5.0  # 0.6 measured; asking for rows by column took 14


def test_importing_the_module_does_not_import_great_expectations() -> None:
    code = "import sys, components.data_contract.validation; sys.exit('great_expectations' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
