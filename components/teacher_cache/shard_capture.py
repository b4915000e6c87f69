"""Capturing one shard after the other: the teacher on this thread, encoding on another.

A shard is finished when its description lies beside it and fits it, byte for byte. A killed capture so loses at most the shard
it was working on.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from components.artifacts import fingerprint_row, read_json, write_json
from components.data.training_rows import TrainingRow
from components.errors import ArtifactError
from components.teacher_cache.capture import LawCapture
from components.teacher_cache.disk_space import naming_full_disk
from components.teacher_cache.encoding import encode
from components.teacher_cache.format import CacheIdentity, ShardEntry
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.reduction import ReducedLaws
from components.teacher_cache.shard_file import EncodedRecord, describe_shard, is_whole, save_shard, split_records
from components.teacher_cache.shard_plan import PlannedRow, PlannedShard, plan_batches

MAX_WAITING = 8
"""Batches that may wait to be encoded; more would only hold memory."""


def finished_shard(work: Path, name: str) -> ShardEntry | None:
    """The description of a shard that is there whole; None when it is missing, half written or damaged."""
    marker = marker_of(work, name)
    if not marker.exists():
        return None
    try:
        entry = ShardEntry(**read_json(marker, made_by="cache_teacher"))
    except (ArtifactError, TypeError):
        return None
    return entry if is_whole(work / name, entry) else None


def marker_of(work: Path, name: str) -> Path:
    return work / f"{name}.json"


@dataclass
class ShardAssembly:
    """What one shard's batches have given so far; only one thread at a time touches it."""

    shard: PlannedShard
    work: Path
    identity: CacheIdentity
    layout: EntryLayout
    records: dict[int, EncodedRecord] = field(default_factory=dict)

    def add(self, batch: Sequence[int], laws: ReducedLaws) -> int:
        """Encode one batch; returns the bytes of its records."""
        tokens = encode(laws, self.identity.tail_mass, self.identity.probability_bits)
        counts = [self.shard.rows[place].num_kept for place in batch]
        added = dict(zip(batch, split_records(tokens, counts, self.layout), strict=True))
        self.records |= added
        return sum(len(record.entries) + sum(column.nbytes for column in record.columns.values()) for record in added.values())

    def finish(self) -> None:
        file = self.work / self.shard.name
        with naming_full_disk(self.work):
            save_shard(file, [self.records[place] for place in range(len(self.shard.rows))])
            write_json(marker_of(self.work, self.shard.name), asdict(describe_shard(file)))
        self.records.clear()


class ShardCapturer:
    """Captures shards; `advance` hears of every batch that is encoded, as (tokens, bytes)."""

    def __init__(
        self,
        teacher: LawCapture,
        rows: Sequence[TrainingRow],
        identity: CacheIdentity,
        layout: EntryLayout,
        batch_tokens: int,
        advance: Callable[[int, int], None],
    ) -> None:
        self._teacher, self._rows, self._identity, self._layout = teacher, rows, identity, layout
        self._batch_tokens, self._advance = batch_tokens, advance
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-cache")
        self._encoding: deque[tuple[Future[int], int]] = deque()

    def capture(self, shard: PlannedShard, work: Path) -> None:
        """Run the teacher over one shard and write it; nothing of the next one is begun before, so a kill costs one shard."""
        assembly = ShardAssembly(shard, work, self._identity, self._layout)
        for batch in plan_batches(shard.rows, self._batch_tokens):
            laws = self._teacher([self._read(shard.rows[place]) for place in batch])
            self._encoding.append((self._thread.submit(assembly.add, batch, laws), len(laws.label_logprob_N)))
            self._settle(at_most=MAX_WAITING)
        self._settle(at_most=0)
        assembly.finish()

    def _read(self, planned: PlannedRow) -> TrainingRow:
        row = self._rows[planned.place]
        found = fingerprint_row(row.input_ids, row.is_target)
        if found != planned.fingerprint:
            raise ArtifactError(
                f"training row {planned.place} is named {planned.fingerprint}, its tokens have the fingerprint {found}. "
                "Make the data again with: dvc repro -f -s prepare_data"
            )
        return row

    def _settle(self, at_most: int) -> None:
        """Take note of batches that are encoded, and wait until no more than `at_most` are not."""
        while self._encoding and (len(self._encoding) > at_most or self._encoding[0][0].done()):
            future, num_tokens = self._encoding.popleft()
            self._advance(num_tokens, future.result())

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
