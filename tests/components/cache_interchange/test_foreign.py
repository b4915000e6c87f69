"""Laws of reading others' caches: what is published is decoded to the bit, what is wrong is refused with its place."""

import json
import math
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.artifacts import ROOT
from components.cache_interchange.distillkit_codec import (
    DistillKitSettings,
    ResidualBin,
    decode_ids,
    decode_logprobs,
    read_settings,
    unpack_bits,
)
from components.cache_interchange.foreign import read_foreign
from components.cache_interchange.foreign_distillkit import read_distillkit
from components.cache_interchange.foreign_jsonl import read_prompt_logprobs
from components.cache_interchange.foreign_laws import TAIL_FLOOR, ForeignRecord
from components.errors import DataError

V = 16
CURVE = DistillKitSettings(d=V, k=3, exact_k=1, exact_dtype="bfloat16", polynomial_terms=(0, 1), delta_encoding=False)
EXACT = DistillKitSettings(d=V, k=3, exact_k=3, delta_encoding=False)


# ---- vLLM's prompt logprobs ----


def write_lines(folder: Path, *rows: Any) -> Path:
    file = folder / "laws.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return file


def good_row(**changes: Any) -> dict[str, Any]:
    first = {"7": {"logprob": -2.0, "rank": 2, "decoded_token": "b"}, "3": {"logprob": -0.5, "rank": 1}}
    second = {"9": {"logprob": -6.0, "rank": 12}, "4": {"logprob": -0.1, "rank": 1}, "2": {"logprob": -3.0, "rank": 2}}
    return {"input_ids": [1, 7, 9], "prompt_logprobs": [None, first, second], **changes}


def lines(file: Path) -> list[ForeignRecord]:
    return list(read_prompt_logprobs(file, V))


def test_entries_are_sorted_and_padded_and_the_label_keeps_the_rank_that_is_told(tmp_path: Path) -> None:
    (record,) = lines(write_lines(tmp_path, good_row()))
    laws = record.laws
    assert record.place == f"{tmp_path / 'laws.jsonl'}:1" and record.input_ids == [1, 7, 9]
    assert laws.entry_ids_TK.tolist() == [[3, 7, 0], [4, 2, 9]] and laws.num_entries_T.tolist() == [2, 3]
    expected = np.array([[-0.5, -2.0, -np.inf], [-0.1, -3.0, -6.0]], dtype=np.float32)
    np.testing.assert_array_equal(laws.entry_logprobs_TK, expected)
    assert laws.label_rank_T.tolist() == [1, 11]
    np.testing.assert_array_equal(laws.label_logprob_T, np.float32([-2.0, -6.0]))
    dtypes = [laws.entry_ids_TK.dtype, laws.num_entries_T.dtype, laws.label_rank_T.dtype]
    assert dtypes == [np.int32] * 3 and laws.entry_logprobs_TK.dtype == laws.tail_logprob_T.dtype == np.float32


def test_the_tail_is_what_the_entries_leave(tmp_path: Path) -> None:
    (record,) = lines(write_lines(tmp_path, good_row()))
    exact = [math.log1p(-(math.exp(-0.5) + math.exp(-2.0))), math.log1p(-sum(map(math.exp, (-0.1, -3.0, -6.0))))]
    np.testing.assert_allclose(record.laws.tail_logprob_T, exact, rtol=1e-6)


def test_plain_numbers_are_logprobs_and_the_lowest_entry_alone_tells_no_rank(tmp_path: Path) -> None:
    laws = [None, {"3": -0.5, "7": -2.0}, {"9": -0.1, "2": -3.0}, {"2": -0.3}]
    (record,) = lines(write_lines(tmp_path, {"input_ids": [1, 7, 9, 5], "prompt_logprobs": laws}))
    assert record.laws.label_rank_T.tolist() == [-1, 0, -1]
    np.testing.assert_array_equal(record.laws.label_logprob_T, np.float32([-2.0, -0.1, np.nan]))


def test_a_whole_vocabulary_leaves_nothing_outside_and_ranks_every_label(tmp_path: Path) -> None:
    law = {str(token): -math.log(2) * (token + 1 if token < 3 else 3) for token in range(4)}
    file = write_lines(tmp_path, {"input_ids": [0, 3], "prompt_logprobs": [None, law]})
    (record,) = read_prompt_logprobs(file, 4)
    assert record.laws.tail_logprob_T.tolist() == [-np.inf]
    assert record.laws.label_rank_T.tolist() == [2]


@pytest.mark.parametrize("excess", [0.0, 1e-7, 9e-4])
def test_a_sum_that_rounds_to_one_gives_the_floor_and_never_more_than_one(tmp_path: Path, excess: float) -> None:
    law = {"3": math.log(0.75 + excess), "7": math.log(0.25)}
    (record,) = lines(write_lines(tmp_path, {"input_ids": [1, 3], "prompt_logprobs": [None, law]}))
    assert float(record.laws.tail_logprob_T[0]) == pytest.approx(TAIL_FLOOR, abs=0.7)
    assert np.exp(record.laws.entry_logprobs_TK.astype(np.float64)).sum() <= 1 + 1e-7


def test_a_servers_answer_is_such_a_line(tmp_path: Path) -> None:
    row = good_row()
    choice = {"index": 0, "prompt_logprobs": row["prompt_logprobs"], "prompt_token_ids": row["input_ids"], "text": ""}
    answers = [{"id": "cmpl-1", "prompt_logprobs": None, "choices": [choice]}, {**choice, "choices": [{"message": {}}]}]
    first, second = lines(write_lines(tmp_path, *answers))
    assert first.input_ids == second.input_ids == [1, 7, 9]
    assert first.laws.label_rank_T.tolist() == second.laws.label_rank_T.tolist() == [1, 11]


def test_a_sequence_of_one_token_has_no_laws_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    one = {"input_ids": [1], "prompt_logprobs": [None]}
    first, second = lines(write_lines(tmp_path, "", one, "  ", good_row()))
    assert first.laws.tail_logprob_T.shape == (0,) and first.place.endswith(":2") and second.place.endswith(":4")


def law_with(value: Any, key: str = "3") -> dict[str, Any]:
    return {"input_ids": [1, 3], "prompt_logprobs": [None, {key: value}]}


BAD_LINES: dict[str, tuple[Any, str]] = {
    "broken JSON": ('{"input_ids": [1', "not usable JSON"),
    "NaN": ('{"input_ids": [1, 3], "prompt_logprobs": [null, {"3": NaN}]}', "NaN is not valid JSON"),
    "a number too large": ('{"input_ids": [1, 3], "prompt_logprobs": [null, {"3": 1e999}]}', "logprob of id 3 is inf"),
    "a key twice": ('{"input_ids": [1, 3], "prompt_logprobs": [null, {"3": -1, "3": -1}]}', "twice in one object"),
    "no object": ([1], "no JSON object"),
    "no ids": ({"prompt_logprobs": [None]}, "neither prompt_token_ids nor input_ids"),
    "ids as text": (good_row(input_ids=["1", "7", "9"]), "neither prompt_token_ids nor input_ids"),
    "empty ids": ({"input_ids": [], "prompt_logprobs": []}, "no input ids"),
    "no laws": ({"input_ids": [1]}, "prompt_logprobs is no list"),
    "lengths": (good_row(input_ids=[1, 7]), "2 input ids but 3 prompt_logprobs"),
    "a law of the first token": (good_row(prompt_logprobs=[{"1": -1}, {"1": -1}, {"1": -1}]), "must be null"),
    "a hole": (good_row(prompt_logprobs=[None, None, {"1": -1}]), "token 1: prompt_logprobs must be an object there, found null"),
    "an empty law": (good_row(prompt_logprobs=[None, {"1": -1}, {}]), "token 2: no entries"),
    "an input id outside": (good_row(input_ids=[1, V, 9]), "input id 16 of token 1 is outside the vocabulary of 16"),
    "an entry outside": (law_with(-1.0, "16"), "token 1: id 16 is outside the vocabulary of 16"),
    "a text for an id": (law_with(-1.0, "the"), "'the' is no token id"),
    "an id in two spellings": (good_row(prompt_logprobs=[None, {"3": -1, "03": -1}, {"1": -1}]), "id 3 occurs twice"),
    "no logprob": (law_with({"rank": 1}), "logprob of id 3 is null"),
    "a rank from 0": (law_with({"logprob": -1, "rank": 0}), "rank of id 3 is 0"),
    "logits": (law_with(0.5), "probabilities sum to 1.64872, more than 1.001"),
    "just too much": (law_with(math.log(1.0012)), "probabilities sum to 1.0012"),
    "two choices": (good_row(choices=[{}, {}]), "choices must be a list of one object"),
}


@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_line_that_is_no_record_is_refused_with_its_place(tmp_path: Path, fault: str) -> None:
    row, message = BAD_LINES[fault]
    file = write_lines(tmp_path, good_row(), row)
    records = read_prompt_logprobs(file, V)
    assert next(records).place.endswith(":1")
    with pytest.raises(DataError, match=r"laws\.jsonl:2: ") as caught:
        next(records)
    assert message in str(caught.value)


def test_a_line_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "laws.jsonl").write_bytes(b'\xff\xfe{"input_ids": [1]}\n')
    with pytest.raises(DataError, match=r"laws\.jsonl:1: not usable JSON"):
        lines(tmp_path / "laws.jsonl")


def test_a_file_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        lines(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is empty"):
        lines(write_lines(tmp_path, ""))


# ---- DistillKit: the bytes ----


def as_bytes(*rows: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array([list(bytes.fromhex(row)) for row in rows], dtype=np.uint8)


def test_literal_bytes_of_the_published_layout_are_what_they_were_made_from() -> None:
    """bf16 -0.5; fp32 coefficients -2 and -1 of 1 and t; ids 5, 3, 9 of four bits and four zero bits."""
    np.testing.assert_array_equal(decode_logprobs(as_bytes("00bf 000000c0 000080bf"), CURVE), [[-0.5, -2.0, -3.0]])
    assert decode_ids(as_bytes("5390"), CURVE).tolist() == [[5, 3, 9]]
    assert (CURVE.logprob_bytes, CURVE.id_bytes) == (10, 2)


def test_literal_bytes_of_residual_bins_add_signed_steps_of_their_scale() -> None:
    """fp16 scale 1.0 and two 3-bit elements 5 and 3 (offset 4: +1, -1); then one-bit elements 1, 0 of scale 0.5 (+, -)."""
    bins = (ResidualBin("float16", 3, 2), ResidualBin("float32", 1, 2))
    settings = DistillKitSettings(d=V, k=4, exact_k=0, residual_bins=bins, polynomial_terms=(0,), delta_encoding=False)
    decoded = decode_logprobs(as_bytes("0000a0c0 003c ac 0000003f 80"), settings)
    np.testing.assert_array_equal(decoded, [[-4.0, -6.0, -4.5, -5.5]])


def test_literal_bytes_of_deltas_are_summed_up() -> None:
    settings = DistillKitSettings(d=V, k=3, exact_k=3)
    np.testing.assert_array_equal(decode_logprobs(as_bytes("000000bf 000080bf 00000000"), settings), [[-0.5, -1.5, -1.5]])


def test_terms_are_over_the_place_among_the_curves_values() -> None:
    settings = DistillKitSettings(
        d=V, k=5, exact_k=0, polynomial_terms=("sqrt", 2), term_dtype="float64", delta_encoding=False, exact_dtype="float64"
    )
    packed = np.frombuffer(struct.pack("<2d", -1.0, -0.25), dtype=np.uint8)[None]
    places = np.arange(5)
    np.testing.assert_allclose(decode_logprobs(packed, settings), [-np.sqrt(places) - 0.25 * places**2], rtol=1e-6)
    unit = DistillKitSettings(
        **{**vars(settings), "normalize_t": True, "polynomial_terms": ("exp", 1)},
    )
    np.testing.assert_allclose(decode_logprobs(packed, unit), [-np.exp(places / 4) - 0.25 * places / 4], rtol=1e-6)


def test_a_curve_never_exceeds_the_last_exact_value() -> None:
    np.testing.assert_array_equal(decode_logprobs(as_bytes("00bf 00000000 000080bf"), CURVE), [[-0.5, -0.5, -1.0]])


@pytest.mark.parametrize("num_bits", [1, 3, 8, 17, 18, 62])
def test_bit_streams_of_any_width_come_back(num_bits: int) -> None:
    values = np.random.default_rng(num_bits).integers(0, 1 << num_bits, (4, 7))
    np.testing.assert_array_equal(unpack_bits(pack(values, num_bits), num_bits, 7), values)


def pack(values: Any, num_bits: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The writer's side, as text: each number in binary, zeros to the next byte."""
    streams = ["".join(f"{value:0{num_bits}b}" for value in row) for row in np.asarray(values).tolist()]
    streams = [stream + "0" * (-len(stream) % 8) for stream in streams]
    return np.array([[int(stream[at : at + 8], 2) for at in range(0, len(stream), 8)] for stream in streams], dtype=np.uint8)


@pytest.mark.parametrize(("vocabulary", "recommended", "budget"), [(128_256, 328, 121), (151_936, 344, 127)])
def test_bytes_of_the_published_configurations(vocabulary: int, recommended: int, budget: int) -> None:
    common: dict[str, Any] = {"d": vocabulary, "exact_dtype": "bfloat16", "delta_encoding": False}
    first = DistillKitSettings(**common, k=128, exact_k=16, polynomial_terms=(0, 1, 2, 3, 4, "sqrt"))
    second = DistillKitSettings(**common, k=50, exact_k=1, polynomial_terms=(0, 1, "sqrt"))
    assert first.logprob_bytes + first.id_bytes == recommended
    assert second.logprob_bytes + second.id_bytes == budget


# ---- DistillKit: the settings ----

SETTINGS: dict[str, Any] = {
    "d": V, "k": 3, "exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1], "term_dtype": "float32",
    "residual_bins": [], "delta_encoding": False, "error_diffusion": False, "normalize_t": False,
}  # fmt: skip


def write_settings(folder: Path, **changes: Any) -> Path:
    file = folder / "compression_config.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, **changes}), encoding="utf-8")
    return file


def test_the_captures_own_file_is_read(tmp_path: Path) -> None:
    assert read_settings(write_settings(tmp_path)) == CURVE
    bins = [{"scale_dtype": "float16", "element_bits": 8, "num_elements": 2}]
    assert read_settings(write_settings(tmp_path, residual_bins=bins)).residual_bins == (ResidualBin("float16", 8, 2),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": 2}, "exact_k <= k <= d"),
        ({"k": "3"}, "whole numbers"),
        ({"exact_dtype": "float8"}, "'float8' is none of"),
        ({"term_dtype": "bfloat16"}, "half precision"),
        ({"polynomial_terms": ["log"]}, "'log'"),
        ({"residual_bins": [{"scale_dtype": "float16", "element_bits": 8, "num_elements": 3}]}, "more than k - exact_k = 2"),
        ({"residual_bins": [{"scale_dtype": "float16", "element_bits": 65, "num_elements": 1}]}, "1 to 64 bits"),
        ({"residual_bins": None}, "TypeError"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=r"compression_config\.yaml: not settings") as caught:
        read_settings(write_settings(tmp_path, **changes))
    assert message in str(caught.value)


def test_settings_that_are_no_yaml_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "compression_config.yaml"
    file.write_text("d: [", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        read_settings(file)
    file.write_text("text", encoding="utf-8")
    with pytest.raises(DataError, match="not settings"):
        read_settings(file)


# ---- DistillKit: the files ----

PUBLISHED = {
    "input_ids": pa.list_(pa.uint64()),
    "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
    "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
    "token_ids": pa.list_(pa.list_(pa.int64())),
    "top_values": pa.list_(pa.list_(pa.float32())),
    "attention_mask": pa.list_(pa.int64()),
}


def write_parquet(file: Path, rows: list[dict[str, Any]], *, rows_per_group: int = 1000, **types: Any) -> Path:
    schema = pa.schema([(name, {**PUBLISHED, **types}[name]) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=rows_per_group)
    return file


def capture(input_ids: list[int], logprobs_TK: Any, ids_TK: Any) -> dict[str, Any]:
    """A row of exact fp32 values, as the capture writes it."""
    values = np.ascontiguousarray(np.asarray(logprobs_TK, dtype="<f4")).view(np.uint8)
    return {"input_ids": input_ids, "compressed_logprobs": values.tolist(), "bytepacked_indices": pack(ids_TK, 4).tolist()}


LOGPROBS = [[-0.5, -2.0, -3.0], [-0.25, -1.75, -6.0]]
IDS = [[5, 3, 9], [15, 0, 7]]


def plain(**changes: Any) -> dict[str, Any]:
    return {"input_ids": [1, 3, 8], "token_ids": IDS, "top_values": LOGPROBS, **changes}


def test_a_captured_row_comes_back_with_its_ranks_and_its_place(tmp_path: Path) -> None:
    rows = [capture([1, 3, 8], LOGPROBS, IDS), capture([2, 15, 7], LOGPROBS[::-1], IDS[::-1])]
    file = write_parquet(tmp_path / "data_0.parquet", [*rows, *rows], rows_per_group=3)
    records = list(read_distillkit(file, V, EXACT))
    assert [record.place for record in records] == [f"{file}:{place}" for place in ("0/0", "0/1", "0/2", "1/0")]
    laws = records[0].laws
    np.testing.assert_array_equal(laws.entry_logprobs_TK, np.float32(LOGPROBS))
    assert laws.entry_ids_TK.tolist() == IDS and records[0].input_ids == [1, 3, 8]
    assert laws.label_rank_T.tolist() == [1, -1] and records[1].laws.label_rank_T.tolist() == [0, -1]
    np.testing.assert_array_equal(laws.label_logprob_T, np.float32([-2.0, np.nan]))
    np.testing.assert_allclose(laws.tail_logprob_T, np.log1p(-np.exp(LOGPROBS).sum(axis=1)), rtol=1e-6)


def test_both_layouts_tell_the_same_law(tmp_path: Path) -> None:
    (one,) = read_distillkit(write_parquet(tmp_path / "a.parquet", [capture([1, 3, 8], LOGPROBS, IDS)]), V, EXACT)
    (other,) = read_distillkit(write_parquet(tmp_path / "b.parquet", [plain()]), V)
    for name, values in vars(one.laws).items():
        np.testing.assert_array_equal(values, getattr(other.laws, name))


def test_a_rank_is_the_stored_place_even_where_a_curve_crosses(tmp_path: Path) -> None:
    """Coefficients -4 and +1: the third value, -3, is above the second."""
    row = {
        "input_ids": [1, 3],
        "compressed_logprobs": as_bytes("00bf 000080c0 0000803f").tolist(),
        "bytepacked_indices": as_bytes("5390").tolist(),
    }
    (record,) = read_distillkit(write_parquet(tmp_path / "a.parquet", [row]), V, CURVE)
    assert record.laws.entry_ids_TK.tolist() == [[5, 9, 3]] and record.laws.label_rank_T.tolist() == [1]


def test_a_curve_that_sums_to_more_than_one_is_scaled_to_one(tmp_path: Path) -> None:
    """bf16 -0.5 and a curve constant at -0.5: 1.82 in all, which is the curve's error and no fault of the file."""
    row = {
        "input_ids": [1, 3],
        "compressed_logprobs": as_bytes("00bf 000000bf 00000000").tolist(),
        "bytepacked_indices": as_bytes("5390").tolist(),
    }
    (record,) = read_distillkit(write_parquet(tmp_path / "a.parquet", [row]), V, CURVE)
    np.testing.assert_allclose(record.laws.entry_logprobs_TK, math.log(1 / 3), rtol=1e-6)
    assert float(record.laws.tail_logprob_T[0]) == pytest.approx(TAIL_FLOOR)


def test_a_value_of_no_probability_is_no_entry_whatever_id_stands_there(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "a.parquet", [plain(top_values=[[-0.5, -2.0, -np.inf], LOGPROBS[1]], token_ids=[[5, 3, 99], IDS[1]])]
    )
    (record,) = read_distillkit(file, V)
    assert record.laws.num_entries_T.tolist() == [2, 3] and record.laws.entry_ids_TK[0].tolist() == [5, 3, 0]


def test_a_packed_row_is_as_many_records_as_it_has_parts(tmp_path: Path) -> None:
    row = {
        "input_ids": [1, 3, 8, 2, 15, 0, 0],
        "token_ids": [IDS[0], IDS[1], IDS[0], IDS[1], IDS[0], IDS[0], IDS[0]],
        "top_values": [LOGPROBS[0], LOGPROBS[1], LOGPROBS[0], LOGPROBS[1], LOGPROBS[0], LOGPROBS[0], LOGPROBS[0]],
        "attention_mask": [1, 1, 1, 2, 2, 0, 0],
    }
    first, second = read_distillkit(write_parquet(tmp_path / "a.parquet", [row]), V)
    assert first.input_ids == [1, 3, 8] and second.input_ids == [2, 15]
    assert first.laws.entry_ids_TK.tolist() == IDS and second.laws.entry_ids_TK.tolist() == [IDS[1]]
    assert first.place.endswith(":0/0, part 0") and second.place.endswith(":0/0, part 1")


def test_one_token_is_a_record_without_laws(tmp_path: Path) -> None:
    rows = [{**capture([1, 3, 8], LOGPROBS, IDS)}, {"input_ids": [4], "compressed_logprobs": [], "bytepacked_indices": []}]
    _, short = read_distillkit(write_parquet(tmp_path / "a.parquet", rows), V, EXACT)
    assert short.input_ids == [4] and short.laws.num_entries_T.shape == (0,)


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "lengths": (plain(input_ids=[1, 3, 8, 2, 5]), "5 input ids but 2 in the column token_ids"),
    "an id outside": (plain(token_ids=[[5, 3, 16], IDS[1]]), "token 1: id 16 is outside the vocabulary of 16"),
    "a negative id": (plain(token_ids=[[5, 3, -1], IDS[1]]), "token 1: id -1 is outside"),
    "an id twice": (plain(token_ids=[[5, 3, 5], IDS[1]]), "token 1: id 5 occurs twice"),
    "an input id outside": (plain(input_ids=[1, 3, 20]), "input id 20 of token 2"),
    "no ids": (plain(input_ids=[]), "no input ids"),
    "NaN": (plain(top_values=[LOGPROBS[0], [-0.5, math.nan, -3.0]]), "token 2: the logprob of id 0 is nan"),
    "logits": (plain(top_values=[LOGPROBS[0], [5.0, 4.0, 3.0]]), "token 2: probabilities sum to 223.0"),
    "uneven lists": (plain(token_ids=[[5, 3], [15, 0, 7]]), "column token_ids has lists of 2 to 3 numbers"),
    "more ids than values": (plain(top_values=[[-1.0], [-1.0]]), "3 ids but 1 logprobs a token"),
    "a hole": (plain(token_ids=[[5, None, 3], IDS[1]]), "column token_ids has an empty place"),
    "no list": (plain(top_values=None), "column top_values has an empty place"),
    "empty laws": (plain(token_ids=[[], []], top_values=[[], []]), "token 1: no entries"),
    "a mask of another length": (plain(attention_mask=[1, 1]), "3 input ids but 2 in the column attention_mask"),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_row_that_is_no_record_is_refused_with_its_place(tmp_path: Path, fault: str) -> None:
    row, message = BAD_ROWS[fault]
    good = {**plain(), **({"attention_mask": [1, 1, 1]} if "attention_mask" in row else {})}
    records = read_distillkit(write_parquet(tmp_path / "data.parquet", [good, row]), V)
    next(records)
    with pytest.raises(DataError, match=r"data\.parquet:0/1: ") as caught:
        next(records)
    assert message in str(caught.value)


def test_settings_of_another_capture_are_noticed_by_the_width_of_the_bytes(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", [capture([1, 3, 8], LOGPROBS, IDS)])
    with pytest.raises(DataError, match="compressed_logprobs has 12 bytes a token, the settings say 10"):
        list(read_distillkit(file, V, CURVE))
    with pytest.raises(DataError, match="bytepacked_indices has 2 bytes a token, the settings say 7"):
        list(read_distillkit(file, V, DistillKitSettings(d=1 << 17, k=3, exact_k=3, delta_encoding=False)))


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("input_ids", "no column input_ids; there are compressed_logprobs, bytepacked_indices"),
        ("compressed_logprobs", "no column compressed_logprobs; there are input_ids, bytepacked_indices"),
        ("bytepacked_indices", "no column bytepacked_indices"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, drop: str, message: str) -> None:
    row = {name: value for name, value in capture([1, 3, 8], LOGPROBS, IDS).items() if name != drop}
    with pytest.raises(DataError, match=message):
        list(read_distillkit(write_parquet(tmp_path / "a.parquet", [row]), V, EXACT))


def test_the_older_layout_is_refused_by_its_columns(tmp_path: Path) -> None:
    numbers, floats = pa.list_(pa.list_(pa.uint64())), pa.list_(pa.list_(pa.float32()))
    row = {"input_ids": [1, 3], "packed_indices": [[7]], "exact_values": [[3.5]], "coeffs": [[1.0, 0.5]]}
    file = write_parquet(tmp_path / "a.parquet", [row], packed_indices=numbers, exact_values=floats, coeffs=floats)
    with pytest.raises(DataError, match="packed_indices, exact_values, coeffs hold centred logits"):
        list(read_distillkit(file, V, EXACT))


def test_bytes_that_are_none_are_refused(tmp_path: Path) -> None:
    row = {**capture([1, 3, 8], LOGPROBS, IDS), "bytepacked_indices": [[300, 1], [2, 3]]}
    file = write_parquet(tmp_path / "a.parquet", [row], bytepacked_indices=pa.list_(pa.list_(pa.int64())))
    with pytest.raises(DataError, match="0/0: column bytepacked_indices"):
        list(read_distillkit(file, V, EXACT))
    file = write_parquet(tmp_path / "b.parquet", [{**row, "bytepacked_indices": "text"}], bytepacked_indices=pa.string())
    with pytest.raises(DataError, match="0/0: column bytepacked_indices, a string"):
        list(read_distillkit(file, V, EXACT))


def test_compressed_columns_without_settings_and_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", [capture([1, 3, 8], LOGPROBS, IDS)])
    with pytest.raises(DataError, match=r"compressed_logprobs needs the settings.*compression_config\.yaml"):
        list(read_distillkit(file, V))
    damaged = tmp_path / "b.parquet"
    damaged.write_bytes(file.read_bytes()[:-20])
    for path in (damaged, tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="cannot be read as parquet"):
            list(read_distillkit(path, V, EXACT))


def test_lists_of_other_arrow_types_are_the_same_lists(tmp_path: Path) -> None:
    types = {"token_ids": pa.list_(pa.list_(pa.int32(), 3)), "top_values": pa.large_list(pa.large_list(pa.float64()))}
    (record,) = read_distillkit(write_parquet(tmp_path / "a.parquet", [plain()], **types), V)
    assert record.laws.entry_ids_TK.tolist() == IDS


# ---- folders ----


def test_a_folder_is_read_in_the_order_of_its_numbers_with_the_settings_beside(tmp_path: Path) -> None:
    for number in (10, 2):
        write_parquet(tmp_path / f"data_{number}.parquet", [capture([1, 3, 8], LOGPROBS, IDS)])
    write_settings(tmp_path, exact_k=3, exact_dtype="float32", polynomial_terms=None)
    names = [record.place.rpartition("/data_")[2] for record in read_foreign(tmp_path, V)]
    assert names == ["2.parquet:0/0", "10.parquet:0/0"]


def test_one_file_may_be_named_and_any_other_kind_is_refused(tmp_path: Path) -> None:
    assert len(list(read_foreign(write_lines(tmp_path, good_row()), V))) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.parquet file"):
        list(read_foreign(tmp_path / "empty", V))
    (tmp_path / "laws.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match="neither"):
        list(read_foreign(tmp_path / "laws.jsonl.gz", V))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Records are dropped as they come: the peak of a file of eighty rows is that of a file of twenty."""

    def peaks(read: Callable[[], Iterator[ForeignRecord]]) -> tuple[int, int]:
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        in_arrow = max(pa.total_allocated_bytes() - before for _ in read())
        in_python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return in_python, in_arrow

    long = capture([1] * 301, LOGPROBS * 150, IDS * 150)
    line = {"input_ids": [7] * 301, "prompt_logprobs": [None, *good_row()["prompt_logprobs"][1:] * 150]}
    found = []
    for number in (20, 80):
        file = write_parquet(tmp_path / f"{number}.parquet", [long] * number)
        lines_file = write_lines(tmp_path, *[line] * number)
        found.append(
            [*peaks(lambda f=file: read_distillkit(f, V, EXACT)), peaks(lambda f=lines_file: read_prompt_logprobs(f, V))[0]]
        )
    assert all(more < 2 * less for less, more in zip(*found, strict=True)), found


def test_reading_needs_no_arrow_until_a_parquet_file_is_opened() -> None:
    modules = "components.cache_interchange.foreign, components.cache_interchange.parquet_export"
    code = f"import sys; sys.modules['pyarrow'] = sys.modules['datasets'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
