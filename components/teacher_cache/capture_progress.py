"""How far a capture is: tokens done, by whom, and whether the disk holds the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from components.teacher_cache.disk_space import refuse_small_disk
from components.teacher_cache.shard_plan import PlannedShard

LEAST_BYTES_PER_TOKEN = 20
"""The sidecar and one entry: what is certain before the first batch has told more."""


class CaptureProgress:
    """The bar counts tokens that are encoded, and shards that others have finished."""

    def __init__(self, bar: "tqdm[Any]", work: Path) -> None:
        self._bar, self._work = bar, work
        self._own: set[str] = set()
        self._num_tokens = self._num_bytes = 0

    def begin_shard(self, shard: PlannedShard, todo: Sequence[PlannedShard]) -> None:
        """This process is about to capture `shard`; refused when what is left to do does not fit the disk."""
        per_token = self._num_bytes / self._num_tokens if self._num_tokens else LEAST_BYTES_PER_TOKEN
        refuse_small_disk(self._work, per_token * sum(other.num_tokens for other in todo if other.name not in self._own))
        self._own.add(shard.name)

    def advance(self, num_tokens: int, num_bytes: int) -> None:
        self._num_tokens += num_tokens
        self._num_bytes += num_bytes
        self._bar.update(num_tokens)

    def count_shard(self, shard: PlannedShard) -> None:
        """A finished shard, counted unless its batches were."""
        if shard.name not in self._own:
            self._bar.update(shard.num_tokens)
