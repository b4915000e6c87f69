"""A teacher cache from laws that somebody else has stored: every training row must be among their records.

What such laws cannot tell stays unknown (`CacheManifest.statistics` says what is known), and the tail is only as good as 1 - sum.
The teacher must be the base model: the proof of alignment before the first training step compares the two.

Shapes: T predicted tokens of a record, N those that the cache keeps of it, K entries.
"""

from array import array
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from components.artifacts import fingerprint_bytes, write_json
from components.cache_interchange.foreign_laws import ForeignLaws, ForeignRecord
from components.data.training_rows import TrainingRow
from components.errors import DataError
from components.teacher_cache.claims import exclusively, sharing
from components.teacher_cache.disk_space import naming_full_disk
from components.teacher_cache.encoding import MAX_RANK, STATISTICS, EncodedTokens, encode
from components.teacher_cache.format import CacheIdentity, CacheManifest, read_manifest
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.publication import LOCK, PRESENCE, clear_work, publish
from components.teacher_cache.reduction import ReducedLaws
from components.teacher_cache.shard_capture import marker_of
from components.teacher_cache.shard_file import EncodedRecord, describe_shard, save_shard, split_records
from components.teacher_cache.shard_plan import (
    CapturePlan,
    CaptureSettings,
    PlannedRow,
    PlannedShard,
    distinct_rows,
    name_shard,
)


def import_cache(
    records: Iterable[ForeignRecord],
    rows: Sequence[TrainingRow],
    identity: CacheIdentity,
    settings: CaptureSettings,
    vocabulary_size: int,
    *,
    target: Path,
    work: Path,
) -> CacheManifest:
    """Keep what `records` say of `rows`, and publish it at `target`. Records of other token ids are passed over."""
    own = work / identity.law_fingerprint / identity.fingerprint
    with naming_full_disk(work):
        work.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with exclusively(work / LOCK):
                own.mkdir(parents=True, exist_ok=True)
                stack.enter_context(sharing(own / PRESENCE))
            importing = _Import(rows, identity, settings, EntryLayout.of(vocabulary_size, identity.probability_bits), own)
            try:
                for record in records:
                    importing.add(record)
            except DataError as error:
                raise DataError(f"{error}. Then run: dvc repro cache_teacher") from None
            finally:
                importing.progress.close()
            plan = CapturePlan(kept=[], new=importing.finish())
            with exclusively(work / LOCK):
                publish(plan, identity, vocabulary_size, target=target, work=own, statistics=sorted(importing.known))
        with exclusively(work / LOCK):
            clear_work(own)
    return read_manifest(target)


@dataclass
class _Import:
    """Rows that wait for their laws, by their token ids; and the shard that is being filled."""

    rows: Sequence[TrainingRow]
    identity: CacheIdentity
    settings: CaptureSettings
    layout: EntryLayout
    work: Path
    known: set[str] = field(default_factory=lambda: set(STATISTICS))
    shards: list[PlannedShard] = field(default_factory=list)
    filled: list[tuple[PlannedRow, EncodedRecord]] = field(default_factory=list)
    num_filled: int = 0

    def __post_init__(self) -> None:
        self.waiting: dict[str, list[PlannedRow]] = {}
        for planned in distinct_rows(self.rows, self.identity.positions).values():
            self.waiting.setdefault(ids_fingerprint(self.rows[planned.place].input_ids), []).append(planned)
        self.num_rows = len(self.waiting)
        self.progress = tqdm(total=self.num_rows, unit="record", desc="cache_teacher: import")

    def add(self, record: ForeignRecord) -> None:
        for planned in self.waiting.pop(ids_fingerprint(record.input_ids), []):
            row = self.rows[planned.place]
            is_kept_T = np.ones(len(row.input_ids) - 1, dtype=bool)
            if self.identity.positions == "targets":
                is_kept_T = np.asarray(row.is_target[1:], dtype=bool)
            tokens = encode_foreign(record.laws, is_kept_T, self.identity)
            self.known -= {name for name in STATISTICS if not _is_known(tokens, name)}
            (encoded,) = split_records(tokens, [planned.num_kept], self.layout)
            self.filled.append((planned, encoded))
            self.num_filled += planned.num_kept
            if self.num_filled >= self.settings.shard_tokens:
                self._write_shard()
        self.progress.update(self.num_rows - len(self.waiting) - self.progress.n)

    def finish(self) -> list[PlannedShard]:
        """All shards, or the refusal that names rows without laws."""
        if self.waiting:
            missing = min((rows[0] for rows in self.waiting.values()), key=lambda row: row.place)
            ids = list(self.rows[missing.place].input_ids)
            raise DataError(
                f"{len(self.waiting)} of the training rows have no laws in teacher_cache.import_path; the first is row "
                f"{missing.place} ({missing.fingerprint}, {len(ids)} tokens, beginning {ids[:8]}). The laws must be of exactly "
                "these token ids: the same tokenizer, chat template and data.max_length. Or set teacher_cache.source: capture"
            )
        if self.filled:
            self._write_shard()
        return self.shards

    def _write_shard(self) -> None:
        shard = name_shard([planned for planned, _ in self.filled], self.identity, self.settings)
        save_shard(self.work / shard.name, [record for _, record in self.filled])
        write_json(marker_of(self.work, shard.name), asdict(describe_shard(self.work / shard.name)))
        self.shards.append(shard)
        self.filled, self.num_filled = [], 0


def ids_fingerprint(input_ids: Sequence[int]) -> str:
    return fingerprint_bytes(array("I", input_ids).tobytes())


def _is_known(tokens: EncodedTokens, name: str) -> bool:
    values = tokens.columns[name]
    return bool((values < MAX_RANK).all()) if name == "label_rank" else bool(np.isfinite(values).all())


def encode_foreign(
    laws: ForeignLaws, is_kept_T: np.ndarray[tuple[int], np.dtype[np.bool_]], identity: CacheIdentity
) -> EncodedTokens:
    """The kept tokens' laws in our terms; entries beyond `max_entries` join the tail."""
    logprobs_NK = torch.from_numpy(laws.entry_logprobs_TK[is_kept_T].astype(np.float64))
    tail_N = torch.from_numpy(laws.tail_logprob_T[is_kept_T].astype(np.float64))
    below_NK = torch.cat([logprobs_NK[:, 1:], tail_N[:, None]], dim=1)  # [n, k - 1] is the k-th after the first k entries
    outside_NK = below_NK.flip(1).logcumsumexp(1).flip(1)
    width = min(identity.max_entries, logprobs_NK.shape[1])
    unknown_N = torch.full_like(tail_N, torch.nan, dtype=torch.float32)
    rank_N = torch.from_numpy(laws.label_rank_T[is_kept_T].astype(np.int32))
    reduced = ReducedLaws(
        entry_ids_NK=torch.from_numpy(laws.entry_ids_TK[is_kept_T])[:, :width],
        entry_logprobs_NK=logprobs_NK[:, :width].float(),
        outside_logprob_NK=outside_NK[:, :width].float(),
        label_logprob_N=torch.from_numpy(laws.label_logprob_T[is_kept_T]),
        label_rank_N=torch.where(rank_N < 0, MAX_RANK, rank_N),
        entropy_N=unknown_N,
        log_partition_N=unknown_N,
        margin_N=unknown_N,
    )
    available_N = torch.from_numpy(laws.num_entries_T[is_kept_T].astype(np.int64)).clamp(min=1, max=width)
    return encode(reduced, identity.tail_mass, identity.probability_bits, available_N)
