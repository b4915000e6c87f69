"""Writing a teacher cache as one parquet file that other tools read: a row per record, lists over its tokens.

    fingerprint      string               the record's address in the cache
    input_ids        list<int32>          [T]
    is_target        list<bool>           [T]
    entry_ids        list<list<int32>>    [N][entries of the token], most likely first
    entry_logprobs   list<list<float>>    [N][entries of the token]
    tail_logprob     list<float>          [N] log of the probability of all other tokens
    label_logprob, label_rank, entropy, log_partition, margin   list<float>, rank list<int32>   [N]

N are the predicted tokens that the cache holds of the record: its targets, or all but the first. The file's schema has the
caller's metadata as JSON under the key METADATA_KEY.

Shapes: T tokens of a record, N cached tokens of it, K the most entries of any of them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.artifacts import write_whole
from components.errors import ArtifactError

METADATA_KEY = "ballast_teacher_cache"
TOKENS_PER_GROUP = 1 << 16
"""Row groups end at this many cached tokens: what is held in memory, and what a reader must load at least."""
TOKEN_COLUMNS = ("tail_logprob", "label_logprob", "label_rank", "entropy", "log_partition", "margin")


@dataclass(frozen=True)
class ExportedRecord:
    """One record of a cache; `entry_*_NK` are padded, and only the first `num_entries_N` of a token count."""

    fingerprint: str
    input_ids: Sequence[int]
    is_target: Sequence[bool]
    entry_ids_NK: npt.NDArray[np.integer[Any]]
    entry_logprobs_NK: npt.NDArray[np.floating[Any]]
    num_entries_N: npt.NDArray[np.integer[Any]]
    tail_logprob_N: npt.NDArray[np.floating[Any]]
    label_logprob_N: npt.NDArray[np.floating[Any]]
    label_rank_N: npt.NDArray[np.integer[Any]]
    entropy_N: npt.NDArray[np.floating[Any]]
    log_partition_N: npt.NDArray[np.floating[Any]]
    margin_N: npt.NDArray[np.floating[Any]]


def export_rows(records: Iterable[ExportedRecord], file: Path, *, metadata: Mapping[str, Any]) -> int:
    """Number of records written. The file is there whole or not at all."""
    import pyarrow.parquet as pq

    schema = _schema().with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    num_records = 0
    with write_whole(file) as sink, pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False) as writer:
        for group in _groups(records):
            writer.write_table(_table(group, schema), row_group_size=len(group))
            num_records += len(group)
    return num_records


def _groups(records: Iterable[ExportedRecord]) -> Iterator[list[ExportedRecord]]:
    group: list[ExportedRecord] = []
    num_tokens = 0
    for record in records:
        _check(record)
        group.append(record)
        num_tokens += len(record.num_entries_N)
        if num_tokens >= TOKENS_PER_GROUP:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


def _check(record: ExportedRecord) -> None:
    num_tokens, width = record.entry_ids_NK.shape
    shapes = {
        "is_target": (len(record.is_target), len(record.input_ids)),
        "entry_logprobs": (record.entry_logprobs_NK.shape, (num_tokens, width)),
        "num_entries": (record.num_entries_N.shape, (num_tokens,)),
        **{name: (getattr(record, f"{name}_N").shape, (num_tokens,)) for name in TOKEN_COLUMNS},
    }
    for name, (found, wanted) in shapes.items():
        if found != wanted:
            raise ArtifactError(f"record {record.fingerprint}: {name} has shape {found}, not {wanted}. Make the cache again")
    if not ((record.num_entries_N >= 0) & (record.num_entries_N <= width)).all():
        raise ArtifactError(f"record {record.fingerprint}: num_entries is not within 0 and {width}. Make the cache again")


def _schema() -> Any:
    import pyarrow as pa

    ids, numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
    names = {"fingerprint": pa.string(), "input_ids": ids, "is_target": pa.list_(pa.bool_())}
    names |= {"entry_ids": pa.list_(ids), "entry_logprobs": pa.list_(numbers)}
    names |= {name: ids if name == "label_rank" else numbers for name in TOKEN_COLUMNS}
    return pa.schema(list(names.items()))


def _table(group: Sequence[ExportedRecord], schema: Any) -> Any:
    """A row group, built from flat arrays and offsets: no Python object per entry."""
    import pyarrow as pa

    starts = _offsets([len(record.num_entries_N) for record in group])
    entry_starts = _offsets(np.concatenate([record.num_entries_N for record in group]))
    columns: dict[str, Any] = {
        "fingerprint": pa.array([record.fingerprint for record in group]),
        "input_ids": pa.array([record.input_ids for record in group], type=schema.field("input_ids").type),
        "is_target": pa.array([record.is_target for record in group], type=schema.field("is_target").type),
    }
    for name, dtype in (("entry_ids", np.int32), ("entry_logprobs", np.float32)):
        flat_E = np.concatenate([_entries(record, getattr(record, f"{name}_NK")) for record in group]).astype(dtype)
        columns[name] = pa.ListArray.from_arrays(starts, pa.ListArray.from_arrays(entry_starts, pa.array(flat_E)))
    for name in TOKEN_COLUMNS:
        flat_N = np.concatenate([getattr(record, f"{name}_N") for record in group])
        values = pa.array(flat_N.astype(np.int32 if name == "label_rank" else np.float32))
        columns[name] = pa.ListArray.from_arrays(starts, values)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _offsets(lengths: Any) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _entries(record: ExportedRecord, values_NK: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without the padding, [E]."""
    is_entry_NK = np.arange(values_NK.shape[1]) < record.num_entries_N[:, None]
    return values_NK[is_entry_NK]
