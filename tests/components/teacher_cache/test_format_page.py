"""docs/teacher-cache.md is the format: its reader, run as it stands there, reads what we write; and what we write stays the same."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.artifacts import ROOT, fingerprint_bytes
from components.teacher_cache.encoding import encode
from components.teacher_cache.format import SCHEMA_VERSION, read_manifest
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.reduction import reduce_logits
from components.teacher_cache.shard_file import record_checksum, split_records
from tests.conftest import build_cache, build_model, build_rows

ROWS = build_rows(25)


def reader_of_the_page() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "teacher-cache.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["read_record"]


@pytest.mark.parametrize("positions", ["targets", "all"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_reader_of_the_page_reads_what_ours_reads(tmp_path: Path, bits: int, positions: str) -> None:
    ours = build_cache(tmp_path, build_model(), ROWS, shard_tokens=60, tail_mass=0.1, probability_bits=bits, positions=positions)
    read_record = reader_of_the_page()
    for row in ROWS:
        columns, ids, logprobs = read_record(tmp_path / "cache", row.input_ids, row.is_target)
        record = ours.read(row.fingerprint, len(columns["entropy"]))
        for name in ("tail_logprob", "label_logprob", "label_rank", "entropy", "log_partition", "margin"):
            np.testing.assert_array_equal(columns[name], record[name].numpy())
        for token, (own_ids, own_logprobs) in enumerate(zip(ids, logprobs, strict=True)):
            count = len(own_ids)
            assert own_ids.tolist() == record["entry_ids"][token, :count].tolist()
            np.testing.assert_allclose(own_logprobs, record["entry_logprobs"][token, :count], rtol=1e-6)
            assert (record["entry_logprobs"][token, count:] == -torch.inf).all()


def test_the_seal_is_what_the_page_says(tmp_path: Path) -> None:
    build_cache(tmp_path, build_model(), ROWS)
    fields = json.loads((tmp_path / "cache" / "manifest.json").read_text(encoding="utf-8"))
    seal = fields.pop("seal")
    assert seal == fingerprint_bytes(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode())
    assert read_manifest(tmp_path / "cache").seal == seal


def test_a_fixed_law_has_fixed_bytes() -> None:
    """A cache that is reused must be what would be captured now: when this changes, raise SCHEMA_VERSION and note the new bytes."""
    exact = torch.arange(5 * 24).reshape(5, 24).remainder(17).float() * torch.tensor([[0.0], [0.25], [0.5], [1.0], [2.0]])
    tokens = encode(reduce_logits(exact, torch.arange(5), max_entries=8, temperature=1.0), 0.05, 12)
    (record,) = split_records(tokens, [5], EntryLayout.of(24, 12))
    rounded = {name: np.round(values.astype(np.float64), 4).tolist() for name, values in record.columns.items()}
    assert SCHEMA_VERSION == 4
    assert rounded["num_entries"] == [8, 8, 8, 4, 2]
    assert record.entries.hex() == ENTRIES
    assert record_checksum(record) == record_checksum(record)


ENTRIES = ""
