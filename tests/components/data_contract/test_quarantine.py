"""Laws of quarantine.jsonl: one line per row, whatever the text; a secret is located and never repeated."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.faults import FaultKind
from components.data_contract.quarantine import quarantine_line, reason_of_findings


def line(raw: str | None, kind: FaultKind = FaultKind.WRONG_TYPE, raw_bytes: int | None = None) -> str:
    return quarantine_line("a.jsonl:7#2", "a.jsonl", 7, kind, "it is so", raw, raw_bytes)


def test_a_line_says_which_row_where_it_stands_why_and_what_it_was() -> None:
    assert json.loads(line('{"a": 1}')) == {
        "row": "a.jsonl:7#2",
        "source": "a.jsonl",
        "line": 7,
        "kind": "wrong_type",
        "reason": "it is so",
        "raw": '{"a": 1}',
    }


def test_the_size_is_told_where_the_text_is_cut_and_only_there() -> None:
    assert json.loads(line("x", raw_bytes=50_000_000))["raw_bytes"] == 50_000_000
    assert "raw_bytes" not in json.loads(line("x"))


@pytest.mark.parametrize("kind", list(FaultKind))
def test_the_text_of_a_row_with_a_secret_or_personal_data_is_not_repeated(kind: FaultKind) -> None:
    written = line("write to jane@example.org", kind)
    hidden = kind in (FaultKind.SECRET, FaultKind.PERSONAL_DATA)
    assert ("jane" not in written) == hidden
    assert (json.loads(written)["raw"] is None) == hidden


@given(st.text(st.characters(), max_size=50), st.text(max_size=20))
def test_every_text_makes_one_line_of_utf8_and_comes_back(raw: str, reason: str) -> None:
    written = quarantine_line("a:1", "a", 1, FaultKind.LOSSY, reason, raw, None)
    assert len(written.splitlines()) == 1
    assert json.loads(written.encode("utf-8")) == {
        "row": "a:1", "source": "a", "line": 1, "kind": "lossy", "reason": reason, "raw": raw,
    }  # fmt: skip


@pytest.mark.parametrize(
    "raw", ["\ud800", "a\udcffb", "\u2028\u2029\x85\x1c\x0b", "\U0001f600 中文 שלום", "\x00\x1b[31m\x7f\x9b"]
)
def test_half_surrogates_and_ends_of_lines_survive(raw: str) -> None:
    assert len(line(raw).splitlines()) == 1
    line(raw).encode("utf-8")
    assert json.loads(line(raw))["raw"] == raw


def test_other_scripts_can_be_read_in_the_file() -> None:
    assert "中文" in line("中文")


def test_a_finding_is_told_by_turn_and_character_from_one() -> None:
    reason = reason_of_findings(FaultKind.PERSONAL_DATA, [("e_mail", 0, 11), ("phone", 2, 0)])
    assert reason == "personal data: e mail in turn 1 at character 12, phone in turn 3 at character 1"


def test_of_many_findings_the_first_five_are_told() -> None:
    reason = reason_of_findings(FaultKind.SECRET, [("aws_key", 0, place) for place in range(8)])
    assert reason.count("aws key") == 5 and reason.endswith(" and 3 more")
