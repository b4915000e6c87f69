"""Frames to judge: sound rows as the preparation leaves them (from Arrow, so strings are `str` and None is missing)."""

from typing import Any

import pandas
import pyarrow
import pytest

from components.data_contract.contract_report import ContractReport, SuiteReport
from components.data_contract.expectations import validate
from components.data_contract.overlap import units
from components.data_contract.raw_checks import raw_rows
from components.data_contract.tokenised_checks import prepared_rows
from components.data_params import DataContractParams, DataParams

RAW_SCHEMA = pyarrow.schema(
    dict.fromkeys(("row_id", "split", "source", "schema", "fault_kind"), pyarrow.string())
    | dict.fromkeys(("num_turns",), pyarrow.int32())
    | dict.fromkeys(("prompt_characters", "target_characters"), pyarrow.int64())
    | dict.fromkeys(
        ("repeats_row", "nearly_repeats_row", "repeats_row_of_other_split", "ood_overlap", "test_overlap"), pyarrow.string()
    )
    | dict.fromkeys(("num_encoding_faults", "num_secrets", "num_personal_data"), pyarrow.int32())
    | {"language": pyarrow.string(), "answer_is_well_formed": pyarrow.bool_()}
)
TOKENISED_SCHEMA = pyarrow.schema(
    dict.fromkeys(("row_id", "split", "source"), pyarrow.string())
    | dict.fromkeys(("num_tokens", "num_target_tokens"), pyarrow.int32())
    | {"end_of_turn_is_target": pyarrow.bool_(), "num_turns_cut": pyarrow.int32(), "targets_decode_to_text": pyarrow.bool_()}
)
NUM_ROWS = 40
BROKEN = 7
"""The place of the row that a test breaks; it is a training row."""
DATA = DataParams(max_length=64)
Rows = list[dict[str, Any]]


def split_of(index: int) -> str:
    return {1: "validation", 2: "test"}.get(index % 10, "train")


def raw_row(index: int, **changes: Any) -> dict[str, Any]:
    sound = {
        "row_id": f"train.json:{index}",
        "split": split_of(index),
        "source": "train.json" if index % 2 else "more.jsonl",
        "schema": "gsm8k" if index % 3 == 0 else "alpaca",
        "fault_kind": "",
        "num_turns": 2,
        "prompt_characters": 50,
        "target_characters": 30,
        "num_encoding_faults": 0,
        "num_secrets": 0,
        "num_personal_data": 0,
        "language": "en" if index % 4 else "",
        "answer_is_well_formed": True if index % 3 == 0 else None,
    }
    return sound | changes


def tokenised_row(index: int, **changes: Any) -> dict[str, Any]:
    sound = {
        "row_id": f"train.json:{index}",
        "split": split_of(index),
        "source": "train.json",
        "num_tokens": 20 + index % 40,
        "num_target_tokens": 5,
        "end_of_turn_is_target": True,
        "num_turns_cut": 0,
        "targets_decode_to_text": True,
    }
    return sound | changes


def with_broken(rows: Rows, *places: int, **changes: Any) -> Rows:
    return [row | changes if index in (places or (BROKEN,)) else row for index, row in enumerate(rows)]


def frame(rows: Rows, schema: pyarrow.Schema) -> pandas.DataFrame:
    return pyarrow.Table.from_pylist(rows, schema=schema).to_pandas()


def blocks(rows: Rows, schema: pyarrow.Schema, num_rows: int | None = None) -> list[pandas.DataFrame]:
    num_rows = num_rows or max(1, len(rows))
    return [frame(rows[start : start + num_rows], schema) for start in range(0, len(rows), num_rows)]


class Judge:
    """Runs a suite over rows given as dictionaries."""

    RAW, TOKENISED, BROKEN, DATA = RAW_SCHEMA, TOKENISED_SCHEMA, BROKEN, DATA
    raw_row, tokenised_row = staticmethod(raw_row), staticmethod(tokenised_row)
    with_broken, blocks, frame = staticmethod(with_broken), staticmethod(blocks), staticmethod(frame)

    def raw_rows(self, num_rows: int = NUM_ROWS) -> Rows:
        return [raw_row(index) for index in range(num_rows)]

    def tokenised_rows(self, num_rows: int = NUM_ROWS) -> Rows:
        return [tokenised_row(index) for index in range(num_rows)]

    def limits(self, **changes: Any) -> DataContractParams:
        return DataContractParams.model_validate(changes)

    def raw(self, rows: Rows, block_rows: int | None = None, **limits: Any) -> SuiteReport:
        return validate(blocks(rows, RAW_SCHEMA, block_rows), raw_rows(self.limits(**limits)), block_rows=1)

    def tokenised(self, rows: Rows, block_rows: int | None = None, **limits: Any) -> SuiteReport:
        return validate(blocks(rows, TOKENISED_SCHEMA, block_rows), prepared_rows(self.limits(**limits), DATA), block_rows=1)

    def both(self, rows: Rows, tokenised: Rows | None = None, **limits: Any) -> ContractReport:
        """The rows that are used are prepared, if nothing else is said."""
        used = [index for index, row in enumerate(rows) if row["fault_kind"] == ""]
        prepared = tokenised if tokenised is not None else [tokenised_row(index, row_id=rows[index]["row_id"]) for index in used]
        return ContractReport(self.raw(rows, **limits), self.tokenised(prepared, **limits))

    def names(self, report: SuiteReport | ContractReport, *severities: Any) -> list[str]:
        return [outcome.name for outcome in report.failures(*severities)]


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="session")
def messy_report(judge: Judge) -> ContractReport:
    """Something of everything, under names that would be markup if a page took them at their word."""
    hostile = '<img src="http://evil.example/{}">&amp;{{{{ 7*7 }}}}.json:{}'
    rows = [raw_row(index, row_id=hostile.format(index, index), source="<b>evil</b>.json") for index in range(100)]
    faults = {3: "empty_turn", 4: "empty_turn", 5: "role_order", 6: "too_long", 8: "duplicate", 9: "secret"}
    rows = [row | {"fault_kind": faults[i], "split": ""} if i in faults else row for i, row in enumerate(rows)]
    rows = with_broken(rows, *range(30, 60), nearly_repeats_row=rows[10]["row_id"], num_encoding_faults=2)
    rows = with_broken(rows, 70, ood_overlap="<script>alert(1)</script>", num_secrets=1, language="<i>")
    rows = with_broken(rows, 75, answer_is_well_formed=False, repeats_row_of_other_split=rows[11]["row_id"])
    tokenised = [tokenised_row(index, row_id=row["row_id"]) for index, row in enumerate(rows) if not row["fault_kind"]]
    tokenised = with_broken(tokenised, 3, 4, num_target_tokens=0)
    return judge.both(rows, with_broken(tokenised, *range(20, 60), num_turns_cut=1), languages=["en", "de"])


def ngrams(text: str, n: int) -> list[str]:
    """Every run of n units as a text: what the hashes of the index stand for."""
    words = units(text)
    return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]
