"""Laws of what is told from all rows together: who repeats whom, and which rows are set aside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.data.faults import POLICY_KINDS, FaultKind
from components.data_params import DataContractParams
from components.data_preparation.findings import NONE, code_of, find, kind_of_code
from components.data_preparation.splits import TEST, TRAIN


def found_in(rows: list[dict[str, Any]], make_prepared: Callable[..., Any], tmp_path: Path, **contract: Any) -> Any:
    prepared = make_prepared(rows)
    return find(prepared.rows, prepared.found.split, DataContractParams(**contract), tmp_path)


def row(place: int, split: str = "train", **facts: Any) -> dict[str, Any]:
    return {"source": "a.jsonl", "place": place, "split": split, "content_hash": place, **facts}


def test_every_kind_has_a_code_of_its_own() -> None:
    assert [kind_of_code(code_of(kind)) for kind in FaultKind] == list(FaultKind)
    assert kind_of_code(0) is None


def test_a_repeat_names_the_first_and_the_first_names_nobody(make_prepared: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(1), row(2, content_hash=1), row(3), row(4, content_hash=1)]
    assert found_in(rows, make_prepared, tmp_path).repeats.tolist() == [NONE, 0, NONE, 0]


def test_a_held_out_row_stands_before_a_training_row(make_prepared: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(1, content_hash=5), row(2, "validation", content_hash=5), row(3, "test", content_hash=5)]
    assert found_in(rows, make_prepared, tmp_path).repeats.tolist() == [2, 2, NONE]


def test_a_row_that_cannot_be_used_repeats_nothing_and_is_repeated_by_nothing(
    make_prepared: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [row(1, content_hash=5, fault=FaultKind.TOO_LONG), row(2, content_hash=5), row(3, content_hash=5)]
    found = found_in(rows, make_prepared, tmp_path)
    assert found.repeats.tolist() == [NONE, NONE, 1]
    assert found.fault.tolist() == [code_of(FaultKind.TOO_LONG), 0, 0]


MARKED: dict[FaultKind, dict[str, Any]] = {
    FaultKind.ENCODING: {"encoding_faults": '[["mojibake", 0, 3]]'},
    FaultKind.SECRET: {"secrets": '[["github_token", 0, 3]]'},
    FaultKind.PERSONAL_DATA: {"personal_data": '[["email", 0, 3]]'},
    FaultKind.LANGUAGE: {"language": "fr"},
    FaultKind.OOD_OVERLAP: {"ood_overlaps": '["svamp.json:1"]'},
    FaultKind.TEST_OVERLAP: {"test_overlaps": '["a.jsonl:9"]'},
    FaultKind.DUPLICATE: {"content_hash": 1},
}


@pytest.mark.parametrize("kind", MARKED)
def test_a_policy_sets_aside_its_rows_and_no_others(kind: FaultKind, make_prepared: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(1), row(2, **MARKED[kind]), row(3)]
    assert not found_in(rows, make_prepared, tmp_path, languages=("en",)).fault.any(), "nothing is set aside unasked"
    found = found_in(rows, make_prepared, tmp_path, languages=("en",), quarantine=(kind.value,))
    assert found.fault.tolist() == [0, code_of(kind), 0]
    others = tuple(other.value for other in POLICY_KINDS if other is not kind)
    assert not found_in(rows, make_prepared, tmp_path, languages=("en",), quarantine=others).fault.any()


@pytest.mark.parametrize("kind", [FaultKind.OOD_OVERLAP, FaultKind.TEST_OVERLAP])
def test_only_training_rows_can_leak(kind: FaultKind, make_prepared: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(1, "test", **MARKED[kind]), row(2, "validation", **MARKED[kind])]
    assert not found_in(rows, make_prepared, tmp_path, quarantine=(kind.value,)).fault.any()


def test_a_text_in_no_language_is_in_no_other_one(make_prepared: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(1, language=""), row(2, language="en"), row(3, language="de")]
    found = found_in(rows, make_prepared, tmp_path, languages=("de", "fr"), quarantine=("language",))
    assert found.is_used.tolist() == [True, False, True]
    assert np.unique(found.split).tolist() == [TRAIN] and TRAIN != TEST
