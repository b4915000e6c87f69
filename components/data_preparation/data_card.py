"""data_card.json: what was read, what is used, what was found and set aside, so that people can judge the data.

The report shows it. Equal rows give equal bytes; memory grows by a few numbers a row. Counts only of secrets and personal data.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from components.artifacts import write_json
from components.data.source_files import SourceFile
from components.data.tokenized import SPLITS
from components.data_preparation.card_findings import findings_of_rows, languages_of_rows
from components.data_preparation.card_samples import example_rows, quarantine_samples, source_bounds
from components.data_preparation.card_sizes import RowSizes, histograms, lengths, measure_rows, rows_cut
from components.data_preparation.findings import kind_of_code

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from components.data_preparation.prepare import Prepared


def write_data_card(
    prepared: "Prepared",
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    counts: dict[str, Any],
    folder: Path,
    *,
    max_length: int | None = None,
) -> None:
    """Leave data_card.json in `folder`, where quarantine.jsonl lies already; `counts` are those of counts.json."""
    write_json(folder / "data_card.json", describe_data(prepared, tokenizer, template, counts, folder, max_length))


def describe_data(
    prepared: "Prepared",
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    counts: dict[str, Any],
    folder: Path,
    max_length: int | None,
) -> dict[str, Any]:
    rows, found = prepared.rows, prepared.found
    sizes = measure_rows(rows)
    return {
        "counts": counts,
        "chat_template": template,
        "max_length": max_length,
        "vocabulary_size": len(tokenizer),
        "sources": source_table(prepared, sizes),
        "lengths": lengths(sizes, found),
        "histograms": histograms(sizes, found),
        "rows_cut": rows_cut(sizes, found),
        "languages": languages_of_rows(rows, found),
        "findings": findings_of_rows(rows, found),
        "quarantine": quarantine_samples(counts["quarantined_by_kind"], folder / "quarantine.jsonl"),
        "examples": example_rows(rows, found, sizes),
    }


def source_table(prepared: "Prepared", sizes: RowSizes) -> list[dict[str, Any]]:
    """A line per file; its rows read are those in and those not drawn, its rows in those used and those quarantined."""
    schemas = _schemas_of_sources(prepared)
    bounds = source_bounds(prepared.rows)
    return [
        _describe(source, num_read, prepared, sizes, slice(start, stop)) | {"schemas": dict(sorted(used_as.items()))}
        for source, num_read, (start, stop), used_as in zip(
            prepared.rows.sources, prepared.num_read, bounds, schemas, strict=True
        )
    ]


def _describe(source: SourceFile, num_read: int, prepared: "Prepared", sizes: RowSizes, own: slice) -> dict[str, Any]:
    fault, split = prepared.found.fault[own], prepared.found.split[own]
    kinds = Counter(str(kind_of_code(code)) for code in fault[fault != 0].tolist())
    return {
        "name": source.name,
        "origin": source.origin,
        "licence": source.licence,
        "weight": source.weight,
        "max_examples": source.max_examples,
        "rows_read": num_read,
        "rows_not_drawn": num_read - len(fault),
        "rows_in": len(fault),
        "rows_used": {name: int(((fault == 0) & (split == code)).sum()) for code, name in enumerate(SPLITS)},
        "quarantined_by_kind": dict(sorted(kinds.items())),
        "target_tokens": int(sizes.target_tokens[own][fault == 0].sum(dtype=np.int64)),
    }


def _schemas_of_sources(prepared: "Prepared") -> list[Counter[str]]:
    """Used rows by schema, for each source."""
    schemas = [Counter[str]() for _ in prepared.rows.sources]
    for start, source, table in prepared.rows.tables(["parsed.schema"]):
        used = table.column(0).fill_null("").filter(pa.array(prepared.found.is_used[start : start + table.num_rows]))
        for pair in used.value_counts().to_pylist():
            schemas[source][pair["values"]] += pair["counts"]
    return schemas
