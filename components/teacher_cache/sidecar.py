"""The cache's columns of one number per token, for the rows in their own order; entries and checksums are not touched.

Opening takes milliseconds whatever the shards weigh: what is not asked for stays on the disk. A row that the cache does not
have is refused, and so is a column that is not, byte for byte, what was written.

Shapes: N target tokens of all rows, in order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from components.data.tokenized import FlatRows
from components.errors import CacheMismatchError
from components.teacher_cache.format import read_manifest
from components.teacher_cache.reader import open_checked_index
from components.teacher_cache.record_index import MISSING
from components.teacher_cache.shard_file import ShardTensors

Floats = npt.NDArray[np.float64]


def predicted_targets(rows: FlatRows) -> npt.NDArray[np.bool_]:
    """Target tokens that something predicts: all but those at the very start of a row, [T]."""
    is_predicted_T = rows.is_target.copy()
    starts = rows.row_starts[:-1]
    is_predicted_T[starts[starts < len(is_predicted_T)]] = False
    return is_predicted_T


def read_sidecar(folder: Path, rows: FlatRows, names: Sequence[str]) -> dict[str, Floats]:
    """The named columns for every predicted target of `rows`, [N] each."""
    manifest = read_manifest(folder)
    if unknown := sorted(set(names) - set(manifest.statistics)):
        raise CacheMismatchError(
            f"{folder} does not know {', '.join(unknown)}: its laws were imported from {manifest.identity.source}. Set "
            "teacher_cache.source: capture in params.yaml and run: dvc repro cache_teacher"
        )
    index = open_checked_index(folder, manifest.index_checksum)
    shards = [ShardTensors(folder / entry.name, entry) for entry in manifest.shards]
    starts = np.cumsum([0, *(entry.num_tokens for entry in manifest.shards)])
    columns = {
        name: np.concatenate([shard.whole_column(name) for shard in shards] or [np.zeros(0)]).astype(np.float64) for name in names
    }
    is_target_T = predicted_targets(rows)
    indices = []
    for row, place in enumerate(index.find_all(rows.fingerprints)):
        own = is_target_T[rows.row_starts[row] : rows.row_starts[row + 1]]
        count = int(index.num_tokens[place]) if place != MISSING else -1
        start = int(starts[index.shard[place]] + index.first_token[place]) if place != MISSING else 0
        if count == own.sum():
            indices.append(np.arange(start, start + count))
        elif count == len(own) - 1:  # `positions: all`: prompt tokens are cached too
            indices.append(start + np.flatnonzero(own[1:]))
        else:
            raise CacheMismatchError(
                f"row {row} ({rows.fingerprints[row]}) is not in {folder} as it is now. Run: dvc repro cache_teacher"
            )
    index_N = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64)
    return {name: values[index_N] for name, values in columns.items()}
