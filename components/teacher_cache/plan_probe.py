"""The probe behind a plan: some rows through the very path of the capture, kept in memory; some planned batches, timed.

Shapes: N tokens of a batch, K entries.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.artifacts import fingerprint_file, write_json
from components.data.training_rows import TrainingRow
from components.errors import ArtifactError
from components.sealed_manifest import seal_of
from components.teacher_cache.capture import LawCapture
from components.teacher_cache.encoding import STATISTICS, choose_num_entries, encode
from components.teacher_cache.entry_guess import contexts_of, guess_entries
from components.teacher_cache.format import INDEX, CacheIdentity, CacheManifest, ShardEntry, read_manifest
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.law_errors import EntryChoice, cut_laws
from components.teacher_cache.planner import INDEX_BYTES, BatchShape, CacheSize, Seconds, TimedBatch, estimate_total
from components.teacher_cache.reader import TeacherCacheReader, open_checked_index
from components.teacher_cache.record_index import MISSING
from components.teacher_cache.reduction import ReducedLaws
from components.teacher_cache.shard_file import (
    EncodedRecord,
    ShardTensors,
    describe_shard,
    index_shard,
    save_shard,
    split_records,
)
from components.teacher_cache.shard_plan import CapturePlan, PlannedRow, PlannedShard, plan_batches

FIXED_ENTRIES = (8, 16, 32, 64, 128)
TAIL_MASSES = (0.1, 0.05, 0.03, 0.01)
MAX_ROUNDS, ROUND_BUDGET_SECONDS = 3, 30.0
"""A timing is repeated so often, unless the rounds so far took longer."""


@dataclass
class ChoiceSums:
    """What one choice would keep of the probed records: entries of each token, [N] a record; the probability in all of them."""

    kept: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    covered: float = 0.0

    @property
    def num_entries(self) -> int:
        return sum(int(kept_N.sum(dtype=np.int64)) for kept_N in self.kept.values())

    @property
    def num_tokens(self) -> int:
        return sum(len(kept_N) for kept_N in self.kept.values())

    def add(self, laws: ReducedLaws, choice: EntryChoice, batch: Sequence[int], counts: Sequence[int]) -> None:
        outside_NK = laws.outside_logprob_NK[:, : choice.max_entries]
        kept_N = choose_num_entries(outside_NK, choice.tail_mass)
        self.covered += float((1 - outside_NK.gather(1, kept_N[:, None] - 1).double().exp()).sum())
        parts = np.split(kept_N.numpy().astype(np.uint8), np.cumsum(counts)[:-1])
        self.kept |= dict(zip(batch, parts, strict=True))


@dataclass(frozen=True)
class ProbedRecords:
    """`records` as the capture would write them, in the order of `rows`; the sums of every choice of entries."""

    rows: list[TrainingRow]
    planned: list[PlannedRow]
    records: list[EncodedRecord]
    choices: dict[EntryChoice, ChoiceSums]

    @property
    def num_tokens_S(self) -> list[int]:
        return [row.num_kept for row in self.planned]


def entry_choices(identity: CacheIdentity, vocabulary_size: int) -> list[EntryChoice]:
    """Fixed numbers of entries, adaptive ones, and what is configured; none wider than the vocabulary."""
    fixed = [EntryChoice(number, 0.0) for number in FIXED_ENTRIES if number <= vocabulary_size]
    most = min(identity.max_entries, vocabulary_size)
    adaptive = [EntryChoice(most, tail_mass) for tail_mass in TAIL_MASSES]
    return list(dict.fromkeys([*fixed, *adaptive, configured_choice(identity, vocabulary_size)]))


def configured_choice(identity: CacheIdentity, vocabulary_size: int) -> EntryChoice:
    return EntryChoice(min(identity.max_entries, vocabulary_size), identity.tail_mass)


def probe_records(
    capture: LawCapture,
    rows: Sequence[TrainingRow],
    planned: Sequence[PlannedRow],
    identity: CacheIdentity,
    choices: Sequence[EntryChoice],
    layout: EntryLayout,
    batch_tokens: int,
) -> ProbedRecords:
    """Capture the planned rows into memory. `capture` gives as many entries as the widest choice; nothing wider is kept."""
    probed = [rows[row.place] for row in planned]
    sums = {choice: ChoiceSums() for choice in choices}
    records: dict[int, EncodedRecord] = {}
    for batch in plan_batches(planned, batch_tokens):
        counts = [planned[place].num_kept for place in batch]
        laws = capture([probed[place] for place in batch])
        tokens = encode(cut_laws(laws, identity.max_entries), identity.tail_mass, identity.probability_bits)
        records |= zip(batch, split_records(tokens, counts, layout), strict=True)
        for choice in choices:
            sums[choice].add(laws, choice, batch, counts)
    return ProbedRecords(probed, list(planned), [records[place] for place in range(len(planned))], sums)


def planned_size(
    probe: ProbedRecords,
    choice: EntryChoice,
    plan: CapturePlan,
    counts_V: npt.NDArray[Any],
    identity: CacheIdentity,
    overhead_bytes: int,
) -> CacheSize:
    """The whole cache with this choice of entries. `counts_V`: of the plan's records, by `count_contexts`."""
    layout = EntryLayout.of(len(counts_V), identity.probability_bits)
    kept = [probe.choices[choice].kept[place] for place in range(len(probe.rows))]
    guessed_S, guessed = guess_entries([contexts_of(row, identity.positions) for row in probe.rows], kept, counts_V)
    record_bytes = [layout.num_bytes(int(kept_N.sum(dtype=np.int64))) for kept_N in kept]
    num_records = sum(len(shard.rows) for shard in plan.new)
    entry_bytes = estimate_total(record_bytes, guessed_S, guessed, num_records)
    return CacheSize(num_records, plan.num_tokens, len(plan.new), entry_bytes, overhead_bytes)


def planned_batches(shards: Sequence[PlannedShard], batch_tokens: int) -> list[list[PlannedRow]]:
    """The batches that the capture will run, shard after shard."""
    return [[shard.rows[place] for place in batch] for shard in shards for batch in plan_batches(shard.rows, batch_tokens)]


def shape_of(batch: Sequence[PlannedRow]) -> BatchShape:
    return BatchShape(len(batch), max(row.length for row in batch), sum(row.num_kept for row in batch))


def time_batches(
    capture: LawCapture,
    rows: Sequence[TrainingRow],
    batches: Sequence[Sequence[PlannedRow]],
    identity: CacheIdentity,
    layout: EntryLayout,
) -> list[TimedBatch]:
    """Each batch through the teacher and the encoder, in rounds over all of them."""
    forward: list[list[float]] = [[] for _ in batches]
    encoding: list[list[float]] = [[] for _ in batches]
    began = time.perf_counter()
    while not forward[-1] or (len(forward[-1]) < MAX_ROUNDS and time.perf_counter() - began < ROUND_BUDGET_SECONDS):
        for place, batch in enumerate(batches):
            own = [rows[row.place] for row in batch]
            started = time.perf_counter()
            laws = capture(own)
            reduced = time.perf_counter()
            tokens = encode(laws, identity.tail_mass, identity.probability_bits)
            for _ in split_records(tokens, [row.num_kept for row in batch], layout):
                pass
            forward[place].append(reduced - started)
            encoding[place].append(time.perf_counter() - reduced)
    return [
        TimedBatch(shape_of(batch), Seconds.of(forward[place]), Seconds.of(encoding[place]))
        for place, batch in enumerate(batches)
    ]


def write_probe(folder: Path, probe: ProbedRecords, identity: CacheIdentity, vocabulary_size: int) -> TeacherCacheReader:
    """The probed records as a cache of their own, to read and to train with."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = EntryLayout.of(vocabulary_size, identity.probability_bits)
    save_shard(folder / "shard-0.safetensors", probe.records)
    entry = describe_shard(folder / "shard-0.safetensors")
    shard = ShardTensors(folder / entry.name, entry)
    index = index_shard(shard, [row.fingerprint for row in probe.planned], probe.num_tokens_S, layout)
    index.write(folder / INDEX)
    manifest_of([entry], folder, identity, vocabulary_size, len(index)).write(folder)
    return TeacherCacheReader(folder, identity)


def manifest_of(
    entries: list[ShardEntry], folder: Path, identity: CacheIdentity, vocabulary_size: int, num_records: int
) -> CacheManifest:
    return CacheManifest(
        identity=identity,
        vocabulary_size=vocabulary_size,
        num_records=num_records,
        num_tokens=sum(entry.num_tokens for entry in entries),
        statistics=list(STATISTICS),
        index_bytes=(folder / INDEX).stat().st_size,
        index_checksum=fingerprint_file(folder / INDEX),
        shards=entries,
    )


def file_bytes(folder: Path, probe: TeacherCacheReader, num_shards: int) -> int:
    """Bytes that are neither columns nor entries nor index rows, in a cache of so many shards like the probe's one."""
    manifest = probe.manifest
    [entry] = manifest.shards
    many = manifest_of([entry] * num_shards, folder, manifest.identity, manifest.vocabulary_size, manifest.num_records)
    write_json(folder / "planned.json", {**asdict(many), "seal": seal_of(many)})
    index_header = manifest.index_bytes - INDEX_BYTES * manifest.num_records
    return num_shards * entry.header_bytes + index_header + (folder / "planned.json").stat().st_size


def held_tokens(folder: Path, identity: CacheIdentity, rows: Sequence[PlannedRow]) -> int:
    """Of the rows' tokens those that the cache at `folder` holds under the same laws: they will not be captured again."""
    try:
        manifest = read_manifest(folder)
        if manifest.identity.law_fingerprint != identity.law_fingerprint:
            return 0
        found = open_checked_index(folder, manifest.index_checksum).find_all([row.fingerprint for row in rows])
    except ArtifactError:
        return 0
    return sum(row.num_kept for row, place in zip(rows, found, strict=True) if place != MISSING)
