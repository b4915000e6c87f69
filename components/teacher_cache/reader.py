"""Reading the teacher cache: random access by record fingerprint, refused unless it was made for exactly this run.

Opening costs the manifest, the index's checksum and the shards' headers, whatever the shards weigh; every record is checked
against its own checksum when it is decoded. Memory does not grow with the cache: all is memory-mapped, and processes share it.

Shapes: N tokens of the records that are read, K the most entries that one of these tokens keeps, M entries of all of them.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.artifacts import fingerprint_file
from components.errors import ArtifactError, CacheMismatchError
from components.teacher_cache.encoding import STATISTICS, pad_entries, unpack_record
from components.teacher_cache.format import INDEX, REPAIR, CacheIdentity, check_identity, read_manifest
from components.teacher_cache.recent_records import DecodedRecord, RecentRecords
from components.teacher_cache.record_index import MISSING, RecordIndex, open_index
from components.teacher_cache.shard_file import EncodedRecord, ShardTensors, record_checksum

MAX_MAPPED = 200
"""Shards mapped at once: each costs a file descriptor, of which a process commonly has 1,024."""


@dataclass(frozen=True)
class RecordRequest:
    """A record by the fingerprint of the batch's own token ids; of its tokens those where `is_wanted` holds (None: all)."""

    fingerprint: str
    num_tokens: int
    is_wanted: npt.NDArray[np.bool_] | None = None


class TeacherCacheReader:
    """`read` and `read_batch` give columns of tensors: `entry_ids` [N, K], `entry_logprobs` [N, K], the rest [N]."""

    def __init__(self, folder: Path, expected: CacheIdentity) -> None:
        manifest = read_manifest(folder)
        check_identity(manifest.identity, expected, folder)
        self.manifest = manifest
        self._folder = folder
        self._layout = manifest.entry_layout
        self._index = open_checked_index(folder, manifest.index_checksum)
        self._shards = [ShardTensors(folder / entry.name, entry) for entry in manifest.shards]
        self._recent = RecentRecords()
        self._mapped: OrderedDict[int, None] = OrderedDict()

    @property
    def holds_prompt(self) -> bool:
        """Its records have the laws at prompt positions too, not only those of target tokens."""
        return self.manifest.identity.positions == "all"

    def knows(self, *statistics: str) -> bool:
        """Whether every token has these statistics of the exact law; imported laws may lack them."""
        return set(statistics) <= set(self.manifest.statistics)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, fingerprint: str, num_tokens: int) -> dict[str, Tensor]:
        """The columns of one record; `fingerprint` must be computed from the batch's own token ids, not taken on trust."""
        return self.read_batch([RecordRequest(fingerprint, num_tokens)])

    def read_targets(self, fingerprint: str, is_target: Sequence[bool]) -> dict[str, Tensor]:
        """The columns of one record's target tokens, whatever else the cache holds of it."""
        return self.read_batch([self.targets_of(fingerprint, is_target)])

    def read_statistics(self, fingerprint: str, is_target: Sequence[bool]) -> dict[str, Tensor]:
        """STATISTICS of one record's target tokens alone, [N] each: no entry is decoded."""
        request = self.targets_of(fingerprint, is_target)
        columns = self._checked(request).columns
        return {name: torch.from_numpy(_wanted(columns[name], request.is_wanted).astype(np.float32)) for name in STATISTICS}

    def targets_of(self, fingerprint: str, is_target: Sequence[bool]) -> RecordRequest:
        """A request for a row's target tokens."""
        is_target_N = np.asarray(is_target[1:], dtype=bool)
        if not self.holds_prompt:
            return RecordRequest(fingerprint, int(is_target_N.sum()))
        return RecordRequest(fingerprint, len(is_target_N), is_target_N)

    def read_batch(self, requests: Sequence[RecordRequest]) -> dict[str, Tensor]:
        """The columns of several records' tokens, one record after the other."""
        records = [(self._decoded(request), request.is_wanted) for request in requests]
        entries = [_wanted_entries(record, is_wanted) for record, is_wanted in records]
        columns = {
            name: np.concatenate([_wanted(record.columns[name], is_wanted) for record, is_wanted in records])
            for name in ("num_entries", "tail_logprob", *STATISTICS)
        }
        ids_NK, logprobs_NK = pad_entries(
            np.concatenate([ids_M for ids_M, _ in entries]),
            np.concatenate([logprobs_M for _, logprobs_M in entries]),
            columns.pop("num_entries"),
        )
        columns["label_rank"] = columns["label_rank"].astype(np.int32)
        tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
        return {"entry_ids": ids_NK, "entry_logprobs": logprobs_NK, **tensors}

    def _decoded(self, request: RecordRequest) -> DecodedRecord:
        recent = self._recent.get(request.fingerprint)
        if recent is not None and recent.num_tokens == request.num_tokens:
            return recent
        record = self._checked(request)
        packed = np.frombuffer(record.entries, dtype=np.uint8)
        count = int(record.columns["num_entries"].sum(dtype=np.int64))
        columns = {name: column.copy() for name, column in record.columns.items()}
        decoded = DecodedRecord(columns, *unpack_record(packed, count, self._layout))
        self._recent.keep(request.fingerprint, decoded)
        return decoded

    def _checked(self, request: RecordRequest) -> EncodedRecord:
        """The record as it lies in its shard, its bytes compared with its checksum."""
        place = self._index.find(request.fingerprint)
        if place == MISSING or self._index.num_tokens[place] != request.num_tokens:
            identity = self.manifest.identity
            raise CacheMismatchError(
                f"record {request.fingerprint} ({request.num_tokens} tokens) is not in {self._folder}, which was made for data "
                f"{identity.data_fingerprint} (tokenizer {identity.tokenizer_fingerprint}, template "
                f"{identity.template_fingerprint}). Other tokens, another template or another cut make another record. "
                "Run: dvc repro cache_teacher"
            )
        record, shard = self._record(place)
        if record_checksum(record) != self._index.checksum[place]:
            raise ArtifactError(
                f"{shard.file} is damaged in record {request.fingerprint}: its checksum is not the index's. Only what is damaged "
                f"will be captured again. Run: {REPAIR}"
            )
        return record

    def _record(self, place: int) -> tuple[EncodedRecord, ShardTensors]:
        index = self._index
        shard = self._look_into(int(index.shard[place]))
        first_token, first_byte = int(index.first_token[place]), int(index.first_byte[place])
        tokens = slice(first_token, first_token + int(index.num_tokens[place]))
        return shard.record(tokens, slice(first_byte, first_byte + int(index.num_bytes[place]))), shard

    def _look_into(self, number: int) -> ShardTensors:
        """A shard; of those looked into longest ago, descriptors are given back."""
        self._mapped[number] = None
        self._mapped.move_to_end(number)
        if len(self._mapped) > MAX_MAPPED:
            self._shards[self._mapped.popitem(last=False)[0]].unmap()
        return self._shards[number]


def _wanted_entries(
    record: DecodedRecord, is_wanted: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    if is_wanted is None:
        return record.entry_ids_M, record.entry_logprobs_M
    is_wanted_M = np.repeat(is_wanted, record.columns["num_entries"])
    return record.entry_ids_M[is_wanted_M], record.entry_logprobs_M[is_wanted_M]


def _wanted(values: npt.NDArray[np.generic], is_wanted: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.generic]:
    return values if is_wanted is None else values[is_wanted]


def open_checked_index(folder: Path, checksum: str) -> RecordIndex:
    """The index, refused when it is missing or not the manifest's. xxh3 reads it at some 10 GB/s: 50 bytes a record."""
    file = folder / INDEX
    if not os.path.exists(file):
        raise ArtifactError(f"{file} is missing from the teacher cache. Run: {REPAIR}")
    if fingerprint_file(file) != checksum:
        raise ArtifactError(f"{file} is damaged: its checksum is not the manifest's {checksum}. Run: {REPAIR}")
    return open_index(file, REPAIR)
