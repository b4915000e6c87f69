"""Laws of the audit: a fault is told, an exception ends on its day, and silence is never taken for safety."""

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from infra import audit
from infra.audit import CANARY, CLEAN, NOT_ASKED, VULNERABLE, NotAskedError, judge, parse, read_allowed

KNOWN: dict[str, Any] = {"name": CANARY[0], "version": CANARY[1], "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.11"]}]}
FAULT: dict[str, Any] = {
    "name": "thing",
    "version": "1.0",
    "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}],
}
FINE: dict[str, Any] = {"name": "fine", "version": "2.0", "vulns": []}
ENTRY = '[[allowed]]\nid = "CVE-1"\npackage = "thing"\nreason = "not reached: we call no parser"\nuntil = 2027-01-31\n'


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[dict[str, Any]], allowed: str = "") -> int:
    (tmp_path / "allowed.toml").write_text(allowed)
    monkeypatch.setattr(audit, "ALLOWED", tmp_path / "allowed.toml")
    monkeypatch.setattr(audit, "run_pip_audit", lambda lock: [KNOWN] if lock.name == "canary.txt" else told)
    monkeypatch.setattr(sys, "argv", ["audit", "requirements.lock"])
    return audit.main()


def test_a_known_vulnerability_is_told_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [FAULT, FINE]) == VULNERABLE
    assert "thing 1.0: GHSA-1 (CVE-1), fixed in 1.1" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, [FINE]) == CLEAN
    assert CANARY[0] not in capsys.readouterr().out


def test_an_exception_needs_a_reason_and_ends_on_its_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_allowed(ENTRY, date(2027, 1, 30)) == {("thing", "CVE-1"): "not reached: we call no parser"}
    assert read_allowed(ENTRY, date(2027, 1, 31)) == {}
    for lacking in ("reason", "until"):
        text = "\n".join(line for line in ENTRY.splitlines() if not line.startswith(lacking))
        with pytest.raises(SystemExit, match=lacking):
            read_allowed(text, date(2027, 1, 1))
    assert run(monkeypatch, tmp_path, [FAULT], ENTRY.replace("2027-01-31", "9999-01-01")) == CLEAN


def test_an_exception_for_another_fault_allows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for other in (ENTRY.replace("CVE-1", "CVE-2"), ENTRY.replace('"thing"', '"other"')):
        assert run(monkeypatch, tmp_path, [FAULT], other.replace("2027", "9999")) == VULNERABLE


@pytest.mark.parametrize("told", [[], [{**KNOWN, "vulns": []}], [{"name": CANARY[0], "skip_reason": "Dependency not found"}]])
def test_a_service_that_knows_nothing_is_not_taken_for_a_clean_bill(told: list[dict[str, Any]]) -> None:
    with pytest.raises(NotAskedError, match="knows no vulnerability"):
        judge([FINE, *told])


def test_no_network_is_not_a_vulnerability(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotAskedError, match="cannot be asked: ConnectionError"):
        parse("", "Traceback\nConnectionError: no such host", "pypi")

    def fail(lock: Path) -> list[dict[str, Any]]:
        raise NotAskedError("the vulnerability service pypi cannot be asked")

    monkeypatch.setattr(audit, "run_pip_audit", fail)
    monkeypatch.setattr(sys, "argv", ["audit"])
    assert audit.main() == NOT_ASKED
    assert "Nothing was audited" in capsys.readouterr().err


def test_what_pip_audit_prints_is_understood() -> None:
    assert judge(parse(json.dumps({"dependencies": [KNOWN, FAULT], "fixes": []}), "", "pypi"))[0][0].id == "GHSA-1"


def test_the_exceptions_that_we_have_are_well_formed() -> None:
    read_allowed(audit.ALLOWED.read_text(encoding="utf-8"), date.today())
