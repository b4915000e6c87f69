"""Laws of bad rows: each costs itself alone, keeps its place and its text, and answers as docs/bad-rows.md says."""

import json
from pathlib import Path

import pytest

from components.data.faults import BadRowError, FaultKind
from components.data.file_blocks import RawRow, cut_blocks, read_block
from components.data.schemas import parse_rows
from tests.components.data.bad_input import LINE, PAGE, ROWS, bytes_of, code, fault_of, fill_page, shown

TABLE = PAGE.read_text(encoding="utf-8").splitlines()
IN_A_LIST = [
    "NaN",
    "Infinity",
    "a number of 5,000 digits",
    "nested 100,000 deep",
    "a key twice",
    "Latin-1 in a UTF-8 file",
    "raw tab in a text",
]
"""What is wrong with the row and not with the list around it."""


def rejected(file: Path) -> list[tuple[RawRow, BadRowError]]:
    found = []
    for block in cut_blocks(file, work=file.parent):
        for row in read_block(block):
            try:
                if isinstance(row.value, BadRowError):
                    raise row.value
                parse_rows(row.value)
            except BadRowError as fault:
                found.append((row, fault))
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_answers_as_the_page_says(name: str) -> None:
    raw = bytes_of(ROWS[name])
    fault = fault_of(raw)
    assert f"| {fault.kind} | {name} | {code(shown(raw))} | {code(str(fault))} |" in TABLE


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_says_what_to_do_and_can_be_printed(name: str) -> None:
    message = str(fault_of(bytes_of(ROWS[name])))
    assert "\n" not in message and message.isprintable() and len(message) < 400
    found, _, repair = message.partition(". ")
    assert found and repair and not repair.endswith("."), message


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_line_costs_itself_alone_and_keeps_its_place_and_text(name: str, tmp_path: Path) -> None:
    raw = bytes_of(ROWS[name])
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([LINE, b"", raw, LINE]))
    [(row, fault)] = rejected(tmp_path / "a.jsonl")
    assert (row.place, row.raw, row.num_bytes) == (3, raw, len(raw))
    assert str(fault) == str(fault_of(raw))


@pytest.mark.parametrize(
    "name", [*IN_A_LIST, *(name for name, row in ROWS.items() if fault_of(bytes_of(row)).kind != "unreadable")]
)
def test_a_bad_row_of_a_list_costs_itself_alone_too(name: str, tmp_path: Path) -> None:
    raw = bytes_of(ROWS[name])
    (tmp_path / "a.json").write_bytes(b"[" + LINE + b",\n " + raw + b"\n, " + LINE + b" ]\n")
    [(row, fault)] = rejected(tmp_path / "a.json")
    assert (row.place, row.raw, str(fault)) == (2, raw, str(fault_of(raw)))


def test_every_kind_of_the_parsing_is_in_the_catalogue() -> None:
    kinds = {fault_of(bytes_of(row)).kind for row in ROWS.values()}
    assert kinds == set(tuple(FaultKind)[:9])
    assert len(ROWS) >= 40


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert fill_page(page) == page


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_row_over_the_limit_is_refused_with_its_size_and_is_not_held(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.data.file_blocks.MAX_ROW_BYTES", 2000)
    long = json.dumps({"prompt": "[" * 3000, "completion": "\\"}).encode()
    rows = [LINE, long, LINE]
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"[" + b",".join(rows) + b"]" if suffix == ".json" else b"\n".join(rows))
    for target_bytes in (1, 500, 2000):
        found = [row for block in cut_blocks(file, work=tmp_path, target_bytes=target_bytes) for row in read_block(block)]
        assert [row.place for row in found] == [1, 2, 3]
        assert found[1].num_bytes == len(long) + (suffix == ".jsonl")
        assert f"the row has {found[1].num_bytes:,} bytes, more than the 2,000 that one may have" in str(found[1].value)
        assert found[1].raw.startswith(b'{"prompt"') and isinstance(found[2].value, dict)


def test_a_line_of_fifty_megabytes_is_read(tmp_path: Path) -> None:
    text = "long " * 10_000_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "completion": text}) + "\n" + LINE.decode(), encoding="utf-8")
    first, second = (row for block in cut_blocks(tmp_path / "a.jsonl", work=tmp_path) for row in read_block(block))
    assert first.value["completion"] == text and second.place == 2
