"""Leaving prepared data behind: the gate with its documents, the splits, the identity that later stages check."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import write_json, write_text
from components.data.held_out import list_ood_files, ood_texts, read_ood_items
from components.data.rendering import template_fingerprint, tokenizer_fingerprint
from components.data.tokenized import write_rows
from components.data_contract.overlap import OverlapIndex
from components.data_contract.validation import validate_rows, write_data_docs
from components.data_preparation.prepare import PreparedData, train_fingerprint
from components.errors import DataError
from components.params import DataParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ood_index(path: Path) -> OverlapIndex:
    """Index of all held-out texts, so that no training row repeats one; a set that cannot be scored later is refused here."""
    files = list_ood_files(path)
    for file in files:
        if file.suffix != ".txt":
            read_ood_items(file)
    pairs = [(f"{file.name}:{index}", text) for file in files for index, text in enumerate(ood_texts(file), start=1)]
    return OverlapIndex([name for name, _ in pairs], [text for _, text in pairs])


def check(prepared: PreparedData, params: DataParams, folder: Path, *, failures: Path) -> None:
    """Validate all rows; documents go to `folder`, and when the gate fails also to `failures`, with the quarantine."""
    report = validate_rows(
        prepared.summaries, num_rows_in=prepared.num_rows_in, num_rejected=len(prepared.rejections), limits=params
    )
    write_data_docs(report, folder / "data_docs")
    write_json(folder / "validation.json", report.to_json())
    write_text(folder / "quarantine.jsonl", quarantine_text(prepared))
    if report.success:
        return
    shutil.rmtree(failures, ignore_errors=True)
    failures.mkdir(parents=True)
    shutil.copytree(folder / "data_docs", failures / "data_docs")
    shutil.copy2(folder / "quarantine.jsonl", failures / "quarantine.jsonl")
    try:
        report.raise_if_failed()
    except DataError as error:
        rows = "".join(f"\n  {rejection.row_id}: {rejection.reason}" for rejection in prepared.rejections[:10])
        rejected = f"\nrejected rows:{rows}" if rows else ""
        raise DataError(
            f"{error}{rejected}\nAll findings: {failures}/data_docs/index.html, every rejected row: quarantine.jsonl"
        ) from None


def quarantine_text(prepared: PreparedData) -> str:
    lines = [
        json.dumps({"row": r.row_id, "source": r.source, "reason": r.reason}, ensure_ascii=False) for r in prepared.rejections
    ]
    return "".join(line + "\n" for line in lines)


def write_prepared(prepared: PreparedData, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> dict[str, Any]:
    """Splits, tokenizer and identity. The identity names only what training sees, so new held-out sets retrain nothing."""
    for split, rows in prepared.splits.items():
        write_rows(folder / f"{split}.arrow", rows)
    tokenizer.save_pretrained(folder / "tokenizer")
    identity = {
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "template_fingerprint": template_fingerprint(tokenizer),
        "train_fingerprint": train_fingerprint(prepared.splits["train"]),
    }
    write_json(folder / "identity.json", identity)
    return prepared.counts()
