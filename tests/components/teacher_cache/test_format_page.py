"""docs/teacher-cache.md is the format: its reader, run as it stands, reads what we write; and what we write stays the same."""

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
from components.teacher_cache.reduction import reduce_logits
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


FIXED = {
    "num_entries": [8.0, 8.0, 7.0, 4.0, 2.0],
    "tail_logprob": [-0.929, -1.987, -3.293, -3.209, -4.0],
    "label_logprob": [-4.458, -3.511, -9.44, -3.668, -24.145],
    "label_rank": [22.0, 8.0, 18.0, 4.0, 12.0],
    "entropy": [2.97, 2.388, 1.734, 1.329, 0.458],
    "log_partition": [4.458, 7.011, 11.94, 22.668, 44.145],
    "margin": [0.1, 0.25, 0.5, 1.0, 2.0],
}
IDS = [13, 3, 16, 6, 19, 9, 22, 12, 12, 2, 15, 5, 18, 8, 21, 11, 11, 1, 14, 4, 17, 7, 20, 10, 0, 23, 13, 9, 22]
CODES = [
    *(1324, 1259, 1198, 1140, 1084, 1031, 981, 933, 1924, 1698, 1498, 1322, 1167, 1030, 909, 802, 2559, 1993, 1552, 1209),
    *(942, 733, 571, 2933, 1779, 1779, 1079, 3808, 1401),
]


def test_a_fixed_law_is_always_written_the_same() -> None:
    """A record that is taken over must be what would be captured now: where this changes, raise SCHEMA_VERSION."""
    scale_N1 = torch.tensor([[0.1], [0.25], [0.5], [1.0], [2.0]])
    logits_NV = (torch.arange(5 * 24).reshape(5, 24) * 7).remainder(23).float() * scale_N1
    tokens = encode(reduce_logits(logits_NV, torch.arange(5), max_entries=8, temperature=1.0), 0.05, 12)
    assert SCHEMA_VERSION == 4
    for name, values in FIXED.items():
        np.testing.assert_allclose(tokens.columns[name].astype(np.float64), values, atol=2e-3)
    assert tokens.entry_ids_M.tolist() == IDS
    assert np.abs(tokens.entry_codes_M - np.array(CODES)).max() <= 1, "the last bit may round the other way on another processor"
