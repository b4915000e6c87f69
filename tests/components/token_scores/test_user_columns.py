"""Laws of a user's columns: every training row exactly once, one finite number per target; any fault is told with its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from components.data.training_rows import count_targets
from components.errors import DataError
from components.params import RESERVED_COLUMNS, TokenScoresParams
from components.token_scores.user_columns import files_fingerprint, read_user_columns
from tests.conftest import Row, build_rows

ROWS = [*build_rows(6), Row([1, 2, 3], [True, True, True])]
"""The last marks its first token, which nothing predicts: it wants two numbers."""
NAMES = ("difficulty", "trust")
Line = dict[str, Any]


def lines() -> list[Line]:
    found = []
    for number, row in enumerate(ROWS):
        own = [number + place / 8 for place in range(count_targets(row))]
        found.append({"fingerprint": row.fingerprint, "difficulty": own, "trust": [-1] * len(own)})
    return found


def write(file: Path, given: list[Line]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in given))
    return file


def test_columns_are_in_the_order_of_the_rows_whatever_that_of_the_lines(tmp_path: Path) -> None:
    columns = read_user_columns(write(tmp_path / "a.jsonl", lines()[::-1]), NAMES, ROWS)
    assert torch.equal(columns["difficulty"], torch.tensor([value for line in lines() for value in line["difficulty"]]))
    assert columns["trust"].dtype == torch.float32 and columns["trust"].unique().tolist() == [-1]
    assert len(columns["trust"]) == sum(count_targets(row) for row in ROWS)


def test_the_files_of_a_folder_are_one_and_their_fingerprint_is_of_their_content(tmp_path: Path) -> None:
    folder = tmp_path / "columns"
    folder.mkdir()
    (folder / "README.md").write_text("not ours")
    write(folder / "a.jsonl", lines()[:3])
    write(folder / "b.jsonl", lines()[3:])
    whole = read_user_columns(write(tmp_path / "whole.jsonl", lines()), NAMES, ROWS)
    parts = read_user_columns(folder, NAMES, ROWS)
    assert all(torch.equal(whole[name], parts[name]) for name in NAMES)
    before = files_fingerprint(folder)
    (folder / "b.jsonl").rename(folder / "c.jsonl")
    assert files_fingerprint(folder) == before
    (folder / "c.jsonl").write_text((folder / "c.jsonl").read_text().replace("-1", "-2"))
    assert files_fingerprint(folder) != before


def changed(**values: Any) -> Callable[[list[Line]], list[Line]]:
    """The third line with other values (None removes the key)."""

    def change(given: list[Line]) -> list[Line]:
        given[2] = {name: value for name, value in {**given[2], **values}.items() if value is not None}
        return given

    return change


def with_number(value: Any) -> Callable[[list[Line]], list[Line]]:
    def change(given: list[Line]) -> list[Line]:
        given[2]["trust"][0] = value
        return given

    return change


FAULTS: dict[str, tuple[Callable[[list[Line]], list[Any]], str]] = {
    "a row left out": (lambda given: given[1:], rf"1 of 7 training rows have no scores, the first is {ROWS[0].fingerprint}"),
    "a row twice": (lambda given: [*given, given[1]], r"a\.jsonl:8: row .* was given at .*a\.jsonl:2 already"),
    "an unknown row": (changed(fingerprint="00ff"), r"a\.jsonl:3: '00ff' is no training row"),
    "no fingerprint": (changed(fingerprint=None), r"a\.jsonl:3: a line must be .*found null as fingerprint"),
    "a fingerprint that is a number": (changed(fingerprint=7), r"a\.jsonl:3: a line must be .*found a number as fingerprint"),
    "a line that is a list": (lambda given: [*given[:2], [1], *given[3:]], r"a\.jsonl:3: a line must be .*found a list"),
    "a column left out": (changed(trust=None), r"a\.jsonl:3: trust must be a list of .* found nothing"),
    "a column that is a number": (changed(trust=1.0), r"a\.jsonl:3: trust must be a list of .* found a number"),
    "a column nobody named": (changed(other=[1]), r"a\.jsonl:3: unknown column 'other'.*token_scores\.columns"),
    "a reserved column": (changed(reference_nll=[1]), r"a\.jsonl:3: unknown column 'reference_nll'"),
    "too few numbers": (changed(trust=[]), r"a\.jsonl:3: trust has 0 numbers, the row has \d+ target tokens"),
    "a number too many": (changed(trust=[0.0] * 40), r"a\.jsonl:3: trust has 40 numbers"),
    "NaN": (with_number(float("nan")), r"a\.jsonl:3: NaN is not valid JSON"),
    "infinity": (with_number(float("-inf")), r"a\.jsonl:3: -Infinity is not valid JSON"),
    "more than float32 can hold": (with_number(1e39), r"a\.jsonl:3: trust\[0\] must be a finite number .*found 1e\+39"),
    "a number of 500 digits": (with_number(10**500), r"a\.jsonl:3: trust\[0\] must be a finite number .*found 1000"),
    "a truth value": (with_number(True), r"a\.jsonl:3: trust\[0\] must be a finite number .*found a truth value"),
    "a text": (with_number("0.5"), r"a\.jsonl:3: trust\[0\] must be a finite number .*found a text"),
    "null": (with_number(None), r"a\.jsonl:3: trust\[0\] must be a finite number .*found null"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_file_line_and_value(tmp_path: Path, name: str) -> None:
    change, said = FAULTS[name]
    with pytest.raises(DataError, match=said):
        read_user_columns(write(tmp_path / "a.jsonl", change(lines())), NAMES, ROWS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", r"a\.jsonl:1: not valid JSON"),
        ("[]", "one JSON list"),
        ('{"fingerprint": "1", "fingerprint": "2"}', r"a\.jsonl:1: the key 'fingerprint' occurs twice"),
        ('{"trust": [1e999]}', r"a\.jsonl:1: a line must be"),
    ],
)
def test_a_file_that_is_no_json_lines_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        read_user_columns(tmp_path / "a.jsonl", NAMES, ROWS)


def test_a_place_without_a_file_names_the_parameters(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    for place in (tmp_path, tmp_path / "a.json", tmp_path / "nowhere.jsonl"):
        with pytest.raises(DataError, match=r"set token_scores\.columns_path, or set token_scores\.columns: \[\]"):
            read_user_columns(place, NAMES, ROWS)


@pytest.mark.parametrize("name", [*RESERVED_COLUMNS, "Upper", "two words", ""])
def test_a_name_that_means_something_already_or_cannot_be_asked_for_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        TokenScoresParams(columns=(name,))
    with pytest.raises(ValidationError, match="must not repeat"):
        TokenScoresParams(columns=("own", "own"))
