"""From finished shards to a cache that others may read: whole, or as it was before.

Shards are linked, not copied, so the disk holds each once. The new cache lies ready in the work folder before the old one is
moved aside, so a kill between the two renames of the exchange loses nothing: the next run finishes it, or undoes it when it is
a run for something else.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from components.artifacts import fingerprint_file, read_json, write_json
from components.errors import ArtifactError
from components.teacher_cache.claims import try_claim
from components.teacher_cache.encoding import STATISTICS
from components.teacher_cache.format import INDEX, MANIFEST, REPAIR, CacheIdentity, CacheManifest, ShardEntry, read_manifest
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.reader import open_checked_index
from components.teacher_cache.record_index import RecordIndex, concatenate
from components.teacher_cache.shard_capture import finished_shard, marker_of
from components.teacher_cache.shard_file import ShardTensors, describe_shard, index_shard, is_whole
from components.teacher_cache.shard_plan import CapturePlan, PlannedShard

LOCK = "plan.lock"
"""Held by whoever looks at what is there, publishes or clears: so nobody plans with what is about to go."""
PRESENCE = "presence.lock"
"""In a work folder, locked by every process that captures there."""
STAGING, REPLACED = "staging", "replaced"


def published(target: Path, identity: CacheIdentity) -> CacheManifest | None:
    """The manifest of the cache at `target` if it is the one wanted, every byte there and nothing beside; otherwise None."""
    try:
        manifest = read_manifest(target)
        if manifest.identity != identity:
            return None
        open_checked_index(target, manifest.index_checksum)
    except ArtifactError:
        return None
    own = {MANIFEST, INDEX, *(entry.name for entry in manifest.shards)}
    if {path.name for path in target.iterdir()} != own:
        return None
    return manifest if all(is_whole(target / entry.name, entry) for entry in manifest.shards) else None


class Watch:
    """Notices that somebody else has published the cache that is wanted, since this was made."""

    def __init__(self, target: Path, identity: CacheIdentity) -> None:
        self._target, self._identity = target, identity
        self._before = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = (self._target / MANIFEST).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def is_published(self) -> bool:
        """A quick look at the manifest alone; one that was there before may belong to a damaged cache."""
        if self._stamp() == self._before:
            return False
        try:
            return read_manifest(self._target).identity == self._identity
        except ArtifactError:
            return False


def publish(
    plan: CapturePlan,
    identity: CacheIdentity,
    vocabulary_size: int,
    *,
    target: Path,
    work: Path,
    statistics: Sequence[str] = STATISTICS,
) -> None:
    """Put the shards of the plan, which `work` holds, at `target` as one cache."""
    layout = EntryLayout.of(vocabulary_size, identity.probability_bits)
    new = [_finished(work, shard) for shard in plan.new]
    index = concatenate(
        [shard.index for shard in plan.kept]
        + [_index(work, entry, shard, layout) for entry, shard in zip(new, plan.new, strict=True)]
    )
    entries = [*(shard.entry for shard in plan.kept), *new]
    staging = work / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for entry in entries:
        link(work / entry.name, staging / entry.name)
    index.write(staging / INDEX)
    _sync(staging / INDEX)
    CacheManifest(
        identity=identity,
        vocabulary_size=vocabulary_size,
        num_records=len(index),
        num_tokens=int(index.num_tokens.sum()),
        statistics=list(statistics),
        index_bytes=(staging / INDEX).stat().st_size,
        index_checksum=fingerprint_file(staging / INDEX),
        shards=entries,
    ).write(staging)
    put_in_place(target, work)


def put_in_place(target: Path, work: Path) -> None:
    """Exchange what is at `target` for the cache that lies ready under `work`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / REPLACED, ignore_errors=True)
    if target.exists():
        os.replace(target, work / REPLACED)
    os.replace(work / STAGING, target)  # killed before this line: see `lies_ready` and `put_back`


def lies_ready(work: Path, identity: CacheIdentity) -> bool:
    """Whether a publication was killed when all but the exchange was done."""
    return published(work / STAGING, identity) is not None


def finish_exchange(target: Path, work: Path, identity: CacheIdentity) -> None:
    """What a killed publication has begun is finished if it was the one that is wanted, and otherwise undone."""
    if lies_ready(work, identity):
        put_in_place(target, work)
    put_back(target, work.parent.parent)


def put_back(target: Path, works: Path) -> None:
    """Undo an exchange that was killed half way and is not the one that we would finish: the old cache is where it was."""
    for replaced in works.glob(f"*/*/{REPLACED}"):
        if not target.exists() and (replaced / MANIFEST).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(replaced, target)


def take_over(plan: CapturePlan, earlier: Path, work: Path) -> None:
    """Link what is there already into the work folder at once: the cache that it is from may be exchanged while we capture."""
    for shard in plan.kept:
        link(shard.folder / shard.entry.name, work / shard.entry.name)
    checksums = listed_checksums(earlier) if plan.new else {}
    for name in {shard.name for shard in plan.new} & checksums.keys():
        try:
            entry = describe_shard(earlier / name)
        except ArtifactError:
            continue
        if entry.checksum == checksums[name]:
            link(earlier / name, work / name)
            write_json(marker_of(work, name), asdict(entry))


def listed_checksums(folder: Path) -> dict[str, str]:
    """What a manifest says of its shards, though it or the index be damaged elsewhere.

    A shard's name tells its rows and settings, so a file that has the checksum listed for that name is what the name says.
    """
    try:
        listed = read_json(folder / MANIFEST, made_by="cache_teacher")["shards"]
        return {entry["name"]: entry["checksum"] for entry in listed}
    except (ArtifactError, KeyError, TypeError):
        return {}


def _finished(work: Path, shard: PlannedShard) -> ShardEntry:
    entry = finished_shard(work, shard.name)
    if entry is None:
        raise ArtifactError(f"{work / shard.name} was damaged before it could be published. Run: {REPAIR}")
    return entry


def _index(work: Path, entry: ShardEntry, shard: PlannedShard, layout: EntryLayout) -> RecordIndex:
    tensors = ShardTensors(work / entry.name, entry)
    return index_shard(tensors, [row.fingerprint for row in shard.rows], [row.num_kept for row in shard.rows], layout)


def link(source: Path, target: Path) -> None:
    """A second name for the same bytes, those behind a symbolic link; a copy where the file system has no such thing."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)
    except OSError:
        _copy(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # rename does nothing between two names of one file


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copy2(source, target)
        _sync(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _sync(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())


def sweep(work: Path) -> None:
    """Remove what killed captures have left half written, so that it does not pile up; not while somebody is about."""
    claim = try_claim(work / PRESENCE)
    if claim is not None:
        for file in (*work.glob("*.partial"), *work.glob(".*.json.*")):
            file.unlink(missing_ok=True)
        claim.release()


def clear_work(work: Path) -> None:
    """Remove the work folder of what was published, and what captures of other data left when they were killed.

    Not those in which somebody is still about: the last one to leave clears them.
    """
    for folder in work.parent.iterdir() if work.parent.exists() else ():
        claim = try_claim(folder / PRESENCE)
        if claim is not None:
            shutil.rmtree(folder, ignore_errors=True)
            claim.release()
    if work.parent.exists() and not any(work.parent.iterdir()):
        work.parent.rmdir()


def unfinished_bytes(works: Path) -> int:
    """What killed captures with other settings have left; they would go on from it, so it is told and not removed."""
    return sum(file.stat().st_size for file in works.glob("*/*/*") if file.is_file())


def adopt_shard(work: Path, name: str) -> ShardEntry | None:
    """A shard that a killed capture of slightly other data has left, taken over; None where there is none."""
    for folder in work.parent.iterdir():
        if folder == work:
            continue
        with suppress(FileNotFoundError):  # its own capture may just be clearing it
            entry = finished_shard(folder, name)
            if entry is not None:
                link(folder / name, work / name)
                write_json(marker_of(work, name), asdict(entry))
                return entry
    return None
