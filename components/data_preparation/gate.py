"""The contract's verdict on prepared rows: documents always, and an error with the rows where it fails."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import write_json
from components.data_contract.contract_report import ContractReport
from components.data_contract.data_docs import write_data_docs
from components.data_contract.expectations import validate
from components.data_contract.raw_checks import raw_rows
from components.data_contract.tokenised_checks import prepared_rows
from components.data_params import DataContractParams, DataParams
from components.data_preparation.frames import raw_frames, tokenised_frames
from components.data_preparation.prepare import Prepared
from components.data_preparation.quarantined_rows import write_quarantine
from components.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SHOWN = 10
MAX_REASON = 300


def check(
    prepared: Prepared,
    tokenizer: "PreTrainedTokenizerBase",
    params: DataParams,
    contract: DataContractParams,
    folder: Path,
    *,
    failures: Path,
) -> ContractReport:
    """Validate all rows; documents and quarantine.jsonl go to `folder`, and when the contract is broken to `failures` too."""
    rows, found = prepared.rows, prepared.found
    report = ContractReport(
        validate(raw_frames(rows, found), raw_rows(contract)),
        validate(tokenised_frames(rows, found, tokenizer), prepared_rows(contract, params)),
        sum(prepared.num_read) - len(rows),
    )
    write_data_docs(report, folder / "data_docs")
    write_json(folder / "validation.json", report.to_json())
    write_quarantine(prepared, folder / "quarantine.jsonl")
    shutil.rmtree(failures, ignore_errors=True)  # what an earlier run has found says nothing of these rows
    if not report.success:
        _keep(folder, failures)
        _raise(report, failures)
    return report


def _keep(folder: Path, failures: Path) -> None:
    failures.mkdir(parents=True)
    shutil.copytree(folder / "data_docs", failures / "data_docs")
    for name in ("quarantine.jsonl", "validation.json"):
        shutil.copy2(folder / name, failures / name)


def _raise(report: ContractReport, failures: Path) -> None:
    try:
        report.raise_if_failed()
    except DataError as error:
        rows = "".join(_first_rejected(failures / "quarantine.jsonl"))
        rejected = f"\nquarantined rows:{rows}" if rows else ""
        raise DataError(
            f"{error}{rejected}\nAll findings: {failures}/data_docs/index.html, every quarantined row: quarantine.jsonl beside it"
        ) from None


def _first_rejected(quarantine: Path) -> Iterator[str]:
    with quarantine.open(encoding="utf-8") as lines:
        for line in islice(lines, MAX_SHOWN):
            told = json.loads(line)
            reason = told["reason"] if len(told["reason"]) <= MAX_REASON else told["reason"][:MAX_REASON] + " …"
            yield f"\n  {told['row']}: {reason}"
