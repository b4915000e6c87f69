"""Laws of the gate: a broken contract says what, where and how to repair it, keeps the rows, and leaves nothing half done."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.data_params import DataContractParams, DataParams
from components.data_preparation.gate import check
from components.errors import DataError

WORDS = "the quick brown fox jumps over a lazy dog and some other small animal of wood".split()
PARAMS = DataParams(source="files", max_length=512)


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


def good_rows(num_rows: int = 60) -> list[dict[str, str]]:
    rng = random.Random(0)
    texts = [(" ".join(rng.choices(WORDS, k=9)), " ".join(rng.choices(WORDS, k=6))) for _ in range(num_rows)]
    return [{"prompt": prompt, "completion": completion} for prompt, completion in texts]


def test_sound_data_pass_and_leave_their_documents(
    prepare_file: Callable[..., Any], write_lines: Callable[..., Path], tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "left").mkdir()
    prepared = prepare_file(write_lines(good_rows()), tokenizer)
    report = check(prepared, tokenizer, PARAMS, DataContractParams(), tmp_path / "left", failures=tmp_path / "failed")
    assert report.success and report.counts["rows_in"] == 60
    assert json.loads((tmp_path / "left" / "validation.json").read_text(encoding="utf-8"))["success"]
    assert {file.name for file in (tmp_path / "left" / "data_docs").iterdir()} == {
        "index.html",
        "prepared_rows.html",
        "raw_rows.html",
    }
    assert (tmp_path / "left" / "quarantine.jsonl").read_text(encoding="utf-8") == ""
    assert not (tmp_path / "failed").exists()


def test_a_broken_contract_says_which_rows_why_and_where_all_findings_are(
    prepare_file: Callable[..., Any], write_lines: Callable[..., Path], tokenizer: Any, tmp_path: Path
) -> None:
    for name in ("left", "failed"):
        (tmp_path / name).mkdir()
    (tmp_path / "failed" / "of an earlier run").write_text("x", encoding="utf-8")
    prepared = prepare_file(write_lines([*good_rows(), '{"prompt": "a", "completion": ', '{"prompt": "a"}']), tokenizer)
    with pytest.raises(DataError) as caught:
        check(prepared, tokenizer, PARAMS, DataContractParams(), tmp_path / "left", failures=tmp_path / "failed")
    message = str(caught.value)
    assert "few_rows_rejected" in message and "data_contract.max_rejected_fraction" in message
    assert "a.jsonl:61: " in message and "a.jsonl:62: " in message
    assert f"{tmp_path / 'failed'}/data_docs/index.html" in message
    kept = [json.loads(line) for line in (tmp_path / "failed" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["row"], row["line"], row["kind"]) for row in kept] == [
        ("a.jsonl:61", 61, "unreadable"),
        ("a.jsonl:62", 62, "unknown_schema"),
    ]
    assert kept[1]["raw"] == '{"prompt": "a"}'
    assert not (tmp_path / "failed" / "of an earlier run").exists()


GERMAN = {
    "prompt": "Was ist das, und warum steht es hier im Garten?",
    "completion": "Das ist ein altes Haus, und niemand wohnt darin.",
}
BROKEN: dict[str, tuple[list[Any], str]] = {
    "duplicate": ([*good_rows(3)] * 2, "max_duplicate_fraction"),
    "secret": ([{"prompt": "key ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8", "completion": "x"}], "max_secret_fraction"),
    "encoding": ([{"prompt": f"say \ufffd{i}", "completion": "x"} for i in range(3)], "max_encoding_fraction"),
    "language": ([GERMAN], "max_other_language_fraction"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_limit_stops_the_rows_and_setting_them_aside_lets_the_others_pass(
    kind: str, prepare_file: Callable[..., Any], write_lines: Callable[..., Path], tokenizer: Any, tmp_path: Path
) -> None:
    rows, key = BROKEN[kind]
    file = write_lines([*good_rows(30), *rows])
    limits: dict[str, Any] = {"max_duplicate_fraction": 0.02, "max_other_language_fraction": 0.0}
    limits |= {"languages": ("en",)} if kind == "language" else {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    contract = DataContractParams(**limits)
    with pytest.raises(DataError, match=key):
        prepared = prepare_file(file, tokenizer, contract=contract)
        check(prepared, tokenizer, PARAMS, contract, tmp_path / "one", failures=tmp_path / "f")
    lenient = DataContractParams(**limits, quarantine=(kind,))
    prepared = prepare_file(file, tokenizer, contract=lenient)
    report = check(prepared, tokenizer, PARAMS, lenient, tmp_path / "two", failures=tmp_path / "f")
    assert report.success
    assert set(report.counts["quarantined_by_kind"]) == {kind}
