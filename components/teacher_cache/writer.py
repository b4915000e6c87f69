"""Making the teacher cache: one forward pass of the frozen base over the training rows that no earlier cache holds.

A killed capture goes on from its finished shards. Any number of processes may run this at once, on one machine or on several that
share the file system: each claims shards until none is left, and one publishes when all are finished. What a process knows of
the others is what lies in the work folder: `<work>/<law>/<identity>/`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from components.data.training_rows import TrainingRow
from components.teacher_cache.capture import LawCapture, LawSettings
from components.teacher_cache.capture_progress import CaptureProgress
from components.teacher_cache.claims import exclusively, sharing, try_claim
from components.teacher_cache.disk_space import naming_full_disk, refuse_unreachable
from components.teacher_cache.format import CacheIdentity, CacheManifest, read_manifest
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.publication import (
    LOCK,
    PRESENCE,
    Watch,
    adopt_shard,
    clear_work,
    finish_exchange,
    publish,
    published,
    sweep,
    take_over,
)
from components.teacher_cache.shard_capture import ShardCapturer, finished_shard
from components.teacher_cache.shard_plan import CapturePlan, CaptureSettings, PlannedShard, plan_capture

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Rank:
    """This process among those that were started together: ranks other than 0 leave when no shard is left to claim.

    `local`: its number on this machine, which says which GPU is its own.
    """

    number: int = 0
    count: int = 1
    local: int | None = None

    @classmethod
    def of_environment(cls, variables: Mapping[str, str]) -> "Rank":
        """As torchrun and accelerate launch set it; without them a process is alone."""
        local = variables.get("LOCAL_RANK")
        number, count = int(variables.get("RANK", "0")), int(variables.get("WORLD_SIZE", "1"))
        return cls(number, count, None if local is None else int(local))


ALONE = Rank()


@dataclass(frozen=True)
class Teacher:
    """The frozen base: `load` is called only if something must be captured."""

    load: Callable[[], torch.nn.Module]
    vocabulary_size: int


def write_cache(
    teacher: Teacher,
    rows: Sequence[TrainingRow],
    identity: CacheIdentity,
    settings: CaptureSettings,
    *,
    target: Path,
    work: Path,
    rank: Rank = ALONE,
) -> CacheManifest | None:
    """Capture what is missing and publish the cache at `target`; resumes from finished shards under `work`.

    Ranks other than 0 return None: they have captured, and do not publish.
    """
    own = work / identity.law_fingerprint / identity.fingerprint
    lock = work / LOCK
    with ExitStack() as stack:
        with naming_full_disk(work):
            work.mkdir(parents=True, exist_ok=True)
            with exclusively(lock):
                own.mkdir(parents=True, exist_ok=True)
                sweep(own)
                stack.enter_context(sharing(own / PRESENCE))
                finish_exchange(target, own, identity)
                watch = Watch(target, identity)
                plan = None if published(target, identity) else plan_capture(rows, identity, settings, target)
                if plan is not None:
                    refuse_unreachable(target, own)
                    take_over(plan, target, own)
        if plan is not None:
            layout = EntryLayout.of(teacher.vocabulary_size, identity.probability_bits)
            _Capture(teacher, rows, identity, settings, layout, rank).run(plan, own, watch)
        with naming_full_disk(work), exclusively(lock):
            if rank.number == 0 and plan is not None and published(target, identity) is None:
                publish(plan, identity, teacher.vocabulary_size, target=target, work=own)
    with exclusively(lock):
        if rank.number == 0 or plan is None or watch.is_published():
            clear_work(own)
    return read_manifest(target) if rank.number == 0 else None


class _Capture:
    """One process's part of a capture: claim, capture, until nothing is left."""

    def __init__(
        self,
        teacher: Teacher,
        rows: Sequence[TrainingRow],
        identity: CacheIdentity,
        settings: CaptureSettings,
        layout: EntryLayout,
        rank: Rank,
    ) -> None:
        self._teacher, self._rows, self._identity, self._settings = teacher, rows, identity, settings
        self._layout, self._rank = layout, rank
        self._capturer: ShardCapturer | None = None
        self._finished: set[str] = set()

    def run(self, plan: CapturePlan, work: Path, watch: Watch) -> None:
        """Return when every shard is finished; a rank other than 0 when there is none left to claim."""
        is_quiet = self._rank.number != 0
        bar = tqdm(total=plan.num_tokens, initial=plan.num_kept_tokens, unit="tok", desc="cache_teacher", disable=is_quiet)
        progress = CaptureProgress(bar, work)
        try:
            while todo := self._unfinished(plan, work, progress):
                was_busy = self._capture_round(todo, work, progress, watch)
                if watch.is_published() or (self._rank.number != 0 and not was_busy):
                    return
                if not was_busy:
                    time.sleep(POLL_SECONDS)
        finally:
            bar.close()
            if self._capturer is not None:
                self._capturer.close()

    def _unfinished(self, plan: CapturePlan, work: Path, progress: CaptureProgress) -> list[PlannedShard]:
        for shard in plan.new:
            if shard.name not in self._finished and (finished_shard(work, shard.name) or adopt_shard(work, shard.name)):
                self._finished.add(shard.name)
                progress.count_shard(shard)
        return [shard for shard in plan.new if shard.name not in self._finished]

    def _capture_round(self, todo: Sequence[PlannedShard], work: Path, progress: CaptureProgress, watch: Watch) -> bool:
        """Capture every shard that nobody else works on; False when there was none. Ranks begin at different shards."""
        turn = self._rank.number * len(todo) // self._rank.count
        in_turn = [*todo[turn:], *todo[:turn]]
        return any([not watch.is_published() and self._capture_if_free(shard, todo, work, progress) for shard in in_turn])

    def _capture_if_free(self, shard: PlannedShard, todo: Sequence[PlannedShard], work: Path, progress: CaptureProgress) -> bool:
        with naming_full_disk(work):
            work.mkdir(parents=True, exist_ok=True)  # another capture may have published and cleared it
            claim = try_claim(work / f"{shard.name}.lock")
        if claim is None:
            return False
        try:
            if finished_shard(work, shard.name) is None:  # nobody has finished it since we looked
                progress.begin_shard(shard, todo)
                self._ready(progress).capture(shard, work)
        finally:
            claim.release()
        return True

    def _ready(self, progress: CaptureProgress) -> ShardCapturer:
        if self._capturer is None:
            law = LawSettings(self._identity.max_entries, self._identity.temperature, self._identity.positions)
            capture = LawCapture(self._teacher.load(), law)
            self._capturer = ShardCapturer(
                capture, self._rows, self._identity, self._layout, self._settings.batch_tokens, progress.advance
            )
        return self._capturer
