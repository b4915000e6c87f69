"""The records of our cache, one after the other, as the parquet file's rows.

Shapes: N tokens of a record, K the most entries of any of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from components.cache_interchange.parquet_export import TOKEN_COLUMNS, ExportedRecord, export_rows
from components.data.training_rows import TrainingRow
from components.errors import ArtifactError
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.shard_plan import distinct_rows


def export_cache(cache: TeacherCacheReader, rows: Sequence[TrainingRow], file: Path) -> int:
    """Write the records of `rows`, each once, in the order of the data; returns their number. Memory is that of a row group."""
    manifest = cache.manifest
    metadata = {
        "identity": asdict(manifest.identity),
        "vocabulary_size": manifest.vocabulary_size,
        "num_records": manifest.num_records,
        "num_tokens": manifest.num_tokens,
        "statistics": list(manifest.statistics),
        "manifest_seal": manifest.seal,
    }
    try:
        return export_rows(cached_records(cache, rows), file, metadata=metadata)
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be written ({error.strerror}); nothing half written is left. Make room, or set cache_export.path in "
            "params.yaml to another place, and run: python -m flows.export_cache"
        ) from None


def cached_records(cache: TeacherCacheReader, rows: Sequence[TrainingRow]) -> Iterator[ExportedRecord]:
    """Every record with its row's tokens; each is checked as training would check it."""
    planned = distinct_rows(rows, cache.manifest.identity.positions).values()
    for row in tqdm(planned, desc="export_cache", unit="record"):
        yield exported(rows[row.place], cache.read(row.fingerprint, row.num_kept))


def exported(row: TrainingRow, columns: dict[str, torch.Tensor]) -> ExportedRecord:
    values: dict[str, Any] = {f"{name}_N": columns[name].numpy() for name in TOKEN_COLUMNS}
    return ExportedRecord(
        fingerprint=row.fingerprint,
        input_ids=row.input_ids,
        is_target=row.is_target,
        entry_ids_NK=columns["entry_ids"].numpy(),
        entry_logprobs_NK=columns["entry_logprobs"].numpy(),
        num_entries_N=(columns["entry_logprobs"] > float("-inf")).sum(1).numpy(),
        **values,
    )
