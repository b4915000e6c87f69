"""Publishing token scores: all columns in one file, its checksum in the manifest, whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from components.artifacts import fingerprint_file, publish_folder
from components.data.training_rows import TrainingRow
from components.token_scores.format import SCORES, ScoresIdentity, ScoresManifest
from components.token_scores.rows import record_starts


def write_scores(
    columns: Mapping[str, Tensor],
    rows: Sequence[TrainingRow],
    identity: ScoresIdentity,
    *,
    target: Path,
    sources: Mapping[str, str] | None = None,
) -> ScoresManifest:
    """Publish `columns` ([N] each, the targets of distinct `rows` one after the other) at `target`."""
    starts = record_starts(rows)
    assert all(column_N.shape == (starts[-1],) for column_N in columns.values()), "a column has one number per target token"
    assert all(bool(torch.isfinite(column_N).all()) for column_N in columns.values()), "scores are finite"
    names = [list(bytes.fromhex(row.fingerprint)) for row in rows]
    tensors = {name: column_N.float().contiguous() for name, column_N in columns.items()}
    tensors["record_starts"] = torch.tensor(starts, dtype=torch.int64)
    tensors["record_names"] = torch.tensor(names, dtype=torch.uint8).reshape(len(rows), 16)
    with publish_folder(target) as staging:
        save_file(tensors, staging / SCORES)
        manifest = ScoresManifest(
            identity=identity,
            columns=sorted(columns),
            num_records=len(rows),
            num_tokens=starts[-1],
            checksum=fingerprint_file(staging / SCORES),
            sources=dict(sources or {}),
        )
        manifest.write(staging)
    return manifest
