"""What is to be captured: rows into shards, shards into batches, and what an earlier cache already holds.

The plan depends on the rows and the settings alone, so every rank and every resumed run makes the same one, batch by batch: the
same shards, byte for byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.artifacts import fingerprint_json
from components.data.training_rows import TrainingRow
from components.errors import ArtifactError
from components.teacher_cache.capture import count_kept
from components.teacher_cache.format import CacheIdentity, ShardEntry, read_manifest
from components.teacher_cache.reader import open_checked_index
from components.teacher_cache.record_index import RecordIndex
from components.teacher_cache.shard_file import is_whole

LEAST_WANTED = 0.5
"""An earlier shard is taken over as long as at least this part of its tokens is still in the data."""


@dataclass(frozen=True)
class CaptureSettings:
    """Padded tokens of a batch, and kept tokens at which a shard is full."""

    batch_tokens: int
    shard_tokens: int


@dataclass(frozen=True)
class PlannedRow:
    """A distinct row: where it is in the data, and how much of it the cache keeps."""

    place: int
    fingerprint: str
    length: int
    num_kept: int


@dataclass(frozen=True)
class PlannedShard:
    name: str
    rows: tuple[PlannedRow, ...]

    @property
    def num_tokens(self) -> int:
        return sum(row.num_kept for row in self.rows)


@dataclass(frozen=True)
class KeptShard:
    """A shard of an earlier cache, verified byte by byte, and the index of those of its records that are still wanted."""

    folder: Path
    entry: ShardEntry
    index: RecordIndex


@dataclass(frozen=True)
class CapturePlan:
    kept: list[KeptShard]
    new: list[PlannedShard]

    @property
    def num_tokens(self) -> int:
        return sum(int(shard.index.num_tokens.sum()) for shard in self.kept) + sum(shard.num_tokens for shard in self.new)

    @property
    def num_kept_tokens(self) -> int:
        return sum(int(shard.index.num_tokens.sum()) for shard in self.kept)


def plan_capture(
    rows: Sequence[TrainingRow], identity: CacheIdentity, settings: CaptureSettings, earlier: Path | None = None
) -> CapturePlan:
    """Shards of `earlier` that can be taken over, and new ones for all rows that these do not hold."""
    distinct = distinct_rows(rows, identity.positions)
    kept = [] if earlier is None else kept_shards(earlier, identity, set(distinct))
    held = {shard.index.name(place) for shard in kept for place in range(len(shard.index))}
    missing = [row for name, row in distinct.items() if name not in held]
    return CapturePlan(kept, [name_shard(part, identity, settings) for part in _cut(missing, settings.shard_tokens)])


def distinct_rows(rows: Sequence[TrainingRow], positions: str) -> dict[str, PlannedRow]:
    """Each row once by its fingerprint, in the order of the data."""
    found: dict[str, PlannedRow] = {}
    for place, row in enumerate(rows):
        if row.fingerprint not in found:
            found[row.fingerprint] = PlannedRow(place, row.fingerprint, len(row.input_ids), count_kept(row, positions))
    return found


def _cut(rows: Sequence[PlannedRow], shard_tokens: int) -> Iterator[list[PlannedRow]]:
    """Rows in order, a new shard as soon as the last one holds `shard_tokens` tokens."""
    shard: list[PlannedRow] = []
    size = 0
    for row in rows:
        shard.append(row)
        size += row.num_kept
        if size >= shard_tokens:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def name_shard(rows: list[PlannedRow], identity: CacheIdentity, settings: CaptureSettings) -> PlannedShard:
    """Named after all that decides its bytes: a shard left by a killed capture is taken for what it is, or not at all."""
    content = [identity.law_fingerprint, settings.batch_tokens, [row.fingerprint for row in rows]]
    return PlannedShard(f"shard-{fingerprint_json(content)[:16]}.safetensors", tuple(rows))


def plan_batches(rows: Sequence[PlannedRow], batch_tokens: int) -> list[list[int]]:
    """Places in `rows` by ascending length, in batches whose padded size stays within `batch_tokens`."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda place: rows[place].length):
        if batches and (len(batches[-1]) + 1) * rows[index].length <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def kept_shards(folder: Path, identity: CacheIdentity, wanted: set[str]) -> list[KeptShard]:
    """Shards of the cache at `folder` that are whole, hold the same laws, and are mostly wanted. No cache there: none."""
    try:
        manifest = read_manifest(folder)
        if manifest.identity.law_fingerprint != identity.law_fingerprint:
            return []
        index = open_checked_index(folder, manifest.index_checksum)
    except ArtifactError:
        return []  # missing, damaged or of another version: there is nothing to take over
    is_wanted_R = np.array([index.name(place) in wanted for place in range(len(index))], dtype=bool)
    kept = []
    for number, entry in enumerate(manifest.shards):
        own = index.take(np.flatnonzero(is_wanted_R & (index.shard == number)))
        if len(own) and own.num_tokens.sum() >= LEAST_WANTED * entry.num_tokens and is_whole(folder / entry.name, entry):
            kept.append(KeptShard(folder, entry, own))
    return kept
