"""Reading the teacher cache: random access by record fingerprint, refused unless it was made for exactly this run."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from components.artifacts import fingerprint_file
from components.errors import ArtifactError, CacheMismatchError
from components.teacher_cache.format import REPAIR, CacheIdentity, check_identity, read_manifest

COLUMNS = ("entry_ids", "entry_logprobs", "tail_logprob", "label_logprob", "label_rank", "entropy")


@dataclass(frozen=True)
class _Place:
    shard: int
    start: int
    stop: int


class TeacherCacheReader:
    """Memory-mapped shards; opening checks identity and checksums, reading checks the number of target tokens."""

    def __init__(self, folder: Path, expected: CacheIdentity) -> None:
        manifest = read_manifest(folder)
        check_identity(manifest.identity, expected, folder)
        self.manifest = manifest
        self._folder = folder
        self._shards: list[dict[str, Any]] = []
        self._places: dict[str, _Place] = {}
        for number, (name, checksum) in enumerate(sorted(manifest.checksums.items())):
            self._open_shard(number, folder / name, checksum)

    def _open_shard(self, number: int, file: Path, checksum: str) -> None:
        if not file.exists():
            raise ArtifactError(f"{file} is missing from the teacher cache. Run: {REPAIR}")
        if fingerprint_file(file) != checksum:
            raise ArtifactError(f"{file} is damaged: its checksum is not the manifest's {checksum}. Run: {REPAIR}")
        try:
            shard = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ArtifactError(f"{file} cannot be read ({error}). Run: {REPAIR}") from None
        starts = shard.get_tensor("record_starts").tolist()
        names = shard.get_tensor("record_names").numpy()
        for record, (start, stop) in enumerate(itertools.pairwise(starts)):
            self._places[names[record].tobytes().hex()] = _Place(number, start, stop)
        self._shards.append({name: shard.get_slice(name) for name in COLUMNS})

    @property
    def holds_prompt(self) -> bool:
        """Its records have the laws at prompt positions too, not only those of target tokens."""
        return self.manifest.identity.positions == "all"

    def __len__(self) -> int:
        return len(self._places)

    def read(self, fingerprint: str, num_targets: int) -> dict[str, Tensor]:
        """The columns of one record; `fingerprint` must be computed from the batch's own token ids, not taken on trust."""
        place = self._places.get(fingerprint)
        if place is None or place.stop - place.start != num_targets:
            raise CacheMismatchError(
                f"record {fingerprint} ({num_targets} tokens) is not in {self._folder}, which was made for data "
                f"{self.manifest.identity.data_fingerprint}. Run: dvc repro cache_teacher"
            )
        return {name: column[place.start : place.stop] for name, column in self._shards[place.shard].items()}

    def read_targets(self, fingerprint: str, is_target: Sequence[bool]) -> dict[str, Tensor]:
        """The columns of one record's target tokens, whatever else the cache holds of it."""
        if not self.holds_prompt:
            return self.read(fingerprint, sum(is_target[1:]))
        is_target_N = torch.tensor(is_target[1:])
        return {name: values[is_target_N] for name, values in self.read(fingerprint, len(is_target) - 1).items()}

    def column(self, name: str) -> Tensor:
        """One per-token column over the whole cache, in shard order (for thresholds and histograms)."""
        return torch.cat([shard[name][:] for shard in self._shards])
