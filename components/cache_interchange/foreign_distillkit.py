"""DistillKit's captures: parquet files with one sequence per row, read a row at a time.

    input_ids             list<uint64>
    compressed_logprobs   list<list<uint8>>   a token's logprobs, see components.cache_interchange.distillkit_codec
    bytepacked_indices    list<list<uint8>>   a token's ids
    attention_mask        list<int>, optional (packing): 1, 1, 2, 2, 2, 0 are two records, and the padding is dropped

or, not compressed, token_ids list<list<int>> and top_values list<list<float>>. Row i of these is the law of token i + 1; a
capture has one row less than ids, a packed file as many, whose last one belongs to no token. The entries stand in the order of
their ranks, so a label that is among them has its rank.

The older layout (packed_indices, exact_values, coeffs) is refused: it holds centred logits without their log-partition, so
nothing tells the probability outside them.

Source, looked up in November 2026: arcee-ai/DistillKit, distillkit/sample_common.py, sample_logits_vllm.py, pack_logits.py and
compression/compressor.py.

Shapes: T predicted tokens of one record, K entries.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.cache_interchange.distillkit_codec import SETTINGS_FILE, DistillKitSettings, decode_ids, decode_logprobs
from components.cache_interchange.foreign_laws import MAX_TOTAL, ForeignRecord, build_laws, check_input_ids
from components.errors import DataError

COMPRESSED = ("compressed_logprobs", "bytepacked_indices")
PLAIN = ("token_ids", "top_values")
LEGACY = ("packed_indices", "exact_values", "coeffs")
HALF_PRECISION_MAX_TOTAL = 1.01
"""Exact values in bfloat16 are wrong by up to 0.2 % of the logprob, so a law's may sum to a little more than 1."""
ROWS_AT_ONCE = 1
"""More rows a read were not faster (4,096 tokens of 128 entries each: 29,000 tokens a second), and took memory for each."""


def read_distillkit(file: Path, vocabulary_size: int, settings: DistillKitSettings | None = None) -> Iterator[ForeignRecord]:
    """The records of one parquet file; `settings` are needed for the compressed columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            columns = _check_columns(parquet.schema_arrow.names, file, settings)
            for group in range(parquet.num_row_groups):
                number = 0
                for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group], columns=columns):
                    for row in range(batch.num_rows):
                        place = f"{file}:{group}/{number}"
                        fields = {name: _matrix(batch.column(name)[row], name, place) for name in columns}
                        yield from _records_of_row(fields, vocabulary_size, settings, place)
                        number += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as parquet ({error}). Copy it again from where it was made") from None


def _check_columns(found: Sequence[str], file: Path, settings: DistillKitSettings | None) -> list[str]:
    """The columns to read; which layout it is, is decided as DistillKit decides it."""
    if set(LEGACY) <= set(found) and not set(PLAIN) <= set(found):
        raise DataError(
            f"{file}: the columns {', '.join(LEGACY)} hold centred logits without their log-partition, so nothing tells the "
            "probability outside them. Capture again with DistillKit's logprob_compressor"
        )
    layout = PLAIN if set(PLAIN) <= set(found) else COMPRESSED
    missing = [name for name in ("input_ids", *layout) if name not in found]
    if missing:
        raise DataError(f"{file}: no column {', '.join(missing)}; there are {', '.join(found)}. Is it a capture of DistillKit's?")
    if layout == COMPRESSED and settings is None:
        raise DataError(f"{file}: the column {COMPRESSED[0]} needs the settings of its capture. Name its {SETTINGS_FILE}")
    return ["input_ids", *layout, *(name for name in ("attention_mask",) if name in found)]


def _matrix(value: Any, name: str, place: str) -> npt.NDArray[Any]:
    """One row's list of numbers, or list of equally long lists of numbers, as an array."""
    import pyarrow as pa

    number = {"compressed_logprobs": pa.uint8(), "bytepacked_indices": pa.uint8(), "top_values": pa.float64()}.get(
        name, pa.int64()
    )
    is_flat = name in ("input_ids", "attention_mask")
    try:
        cast = value.cast(pa.list_(number) if is_flat else pa.list_(pa.list_(number)))
    except pa.ArrowException as error:
        raise DataError(f"{place}: column {name}, a {value.type}, does not hold what DistillKit writes ({error})") from None
    inner = cast.values
    if inner is None or inner.null_count or (not is_flat and inner.flatten().null_count):
        raise DataError(f"{place}: column {name} has an empty place. Remove the record, or capture it again")
    if is_flat:
        return np.asarray(inner)
    lengths = np.asarray(inner.value_lengths())
    if len(set(lengths.tolist())) > 1:
        raise DataError(
            f"{place}: column {name} has lists of {lengths.min()} to {lengths.max()} numbers. They must be equally long"
        )
    return np.asarray(inner.flatten()).reshape(len(lengths), -1 if len(lengths) else 0)


def _records_of_row(
    fields: Mapping[str, npt.NDArray[Any]], vocabulary_size: int, settings: DistillKitSettings | None, place: str
) -> Iterator[ForeignRecord]:
    input_ids = fields["input_ids"]
    check_input_ids(input_ids, vocabulary_size, place)
    for name, values in fields.items():
        allowed = (len(input_ids),) if name in ("input_ids", "attention_mask") else (len(input_ids) - 1, len(input_ids))
        if len(values) not in allowed:
            raise DataError(
                f"{place}: {len(input_ids)} input ids but {len(values)} in the column {name}. "
                f"There must be {' or '.join(map(str, allowed))}; DistillKit's packing cuts the ids to the logprobs"
            )
    part_T = fields.get("attention_mask", np.ones(len(input_ids), dtype=np.int64))
    bounds = [0, *(np.flatnonzero(np.diff(part_T)) + 1).tolist(), len(input_ids)]
    parts = [(start, stop) for start, stop in itertools.pairwise(bounds) if part_T[start]]
    for number, (start, stop) in enumerate(parts):
        where = place if len(parts) == 1 else f"{place}, part {number}"
        rows = {name: values[start : stop - 1] for name, values in fields.items() if name not in ("input_ids", "attention_mask")}
        yield _record_of_part(input_ids[start:stop], rows, vocabulary_size, settings, where)


def _record_of_part(
    input_ids: npt.NDArray[np.int64],
    rows: Mapping[str, npt.NDArray[Any]],
    vocabulary_size: int,
    settings: DistillKitSettings | None,
    place: str,
) -> ForeignRecord:
    """The entries stand in the order of their rank, so the label's place among them is its rank."""
    if PLAIN[0] in rows:
        ids_TK, logprobs_TK = rows["token_ids"], rows["top_values"]
        num_checked, max_total = None, MAX_TOTAL
    else:
        assert settings is not None
        for name, wanted in zip(COMPRESSED, (settings.logprob_bytes, settings.id_bytes), strict=True):
            if len(rows[name]) and rows[name].shape[1] != wanted:
                raise DataError(
                    f"{place}: the column {name} has {rows[name].shape[1]} bytes a token, the settings say {wanted}. "
                    f"They are those of another capture: name the {SETTINGS_FILE} that lies beside this file"
                )
        if len(input_ids) > 1:
            ids_TK = decode_ids(rows[COMPRESSED[1]], settings)
            logprobs_TK = decode_logprobs(rows[COMPRESSED[0]], settings).astype(np.float64)
        else:
            ids_TK, logprobs_TK = np.zeros((0, settings.k), dtype=np.int64), np.zeros((0, settings.k))
        num_checked = settings.exact_k
        max_total = MAX_TOTAL if settings.exact_dtype in ("float32", "float64") else HALF_PRECISION_MAX_TOTAL
    if ids_TK.shape != logprobs_TK.shape:
        raise DataError(f"{place}: {ids_TK.shape[1]} ids but {logprobs_TK.shape[1]} logprobs a token in {' and '.join(PLAIN)}")
    laws = build_laws(
        ids_TK,
        logprobs_TK,
        input_ids[1:],
        vocabulary_size,
        place,
        told_rank_T=None,
        max_total=max_total,
        num_checked=num_checked,
    )
    return ForeignRecord(place, input_ids.tolist(), laws)
