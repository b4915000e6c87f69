"""The cache's columns of one number per token, for the rows in their own order; entries and checksums are not touched.

Opening takes milliseconds whatever the shards weigh: what is not asked for stays on the disk. A row that the cache does not
have is refused; a flipped bit is not noticed here (the reader that training uses checks every shard).

Shapes: N target tokens of all rows, in order.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from components.data.tokenized import FlatRows
from components.errors import ArtifactError, CacheMismatchError
from components.teacher_cache.format import REPAIR, read_manifest

Floats = npt.NDArray[np.float64]


def predicted_targets(rows: FlatRows) -> npt.NDArray[np.bool_]:
    """Target tokens that something predicts: all but those at the very start of a row, [T]."""
    is_predicted_T = rows.is_target.copy()
    starts = rows.row_starts[:-1]
    is_predicted_T[starts[starts < len(is_predicted_T)]] = False
    return is_predicted_T


def read_sidecar(folder: Path, rows: FlatRows, names: Sequence[str]) -> dict[str, Floats]:
    """The named columns for every predicted target of `rows`, [N] each."""
    stored, places = _read_shards(folder, names)
    is_target_T = predicted_targets(rows)
    indices = []
    for row, fingerprint in enumerate(rows.fingerprints):
        first, last = rows.row_starts[row], rows.row_starts[row + 1]
        own = is_target_T[first:last]
        start, stop = places.get(fingerprint, (0, -1))
        if stop - start == own.sum():
            indices.append(np.arange(start, stop))
        elif stop - start == len(own) - 1:  # `positions: all`: prompt tokens are cached too
            indices.append(start + np.flatnonzero(own[1:]))
        else:
            raise CacheMismatchError(f"row {row} ({fingerprint}) is not in {folder} as it is now. Run: dvc repro cache_teacher")
    index_N = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64)
    return {name: values[index_N] for name, values in stored.items()}


def _read_shards(folder: Path, names: Sequence[str]) -> tuple[dict[str, Floats], dict[str, tuple[int, int]]]:
    """Columns over all shards, and where each record's tokens are in them."""
    parts: dict[str, list[Floats]] = {name: [] for name in names}
    places: dict[str, tuple[int, int]] = {}
    base = 0
    for shard_name in sorted(read_manifest(folder).checksums):
        try:
            with safe_open(folder / shard_name, framework="pt") as shard:
                starts = (shard.get_tensor("record_starts") + base).tolist()
                keys = [bytes(key).hex() for key in shard.get_tensor("record_names").numpy()]
                for name in names:
                    parts[name].append(shard.get_tensor(name).to(torch.float64).numpy())
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{folder / shard_name} cannot be read ({error}). Run: {REPAIR}") from None
        places.update(zip(keys, itertools.pairwise(starts), strict=True))
        base = starts[-1]
    return {name: np.concatenate(values) if values else np.zeros(0) for name, values in parts.items()}, places
