"""One shard: the columns of many records' tokens one after the other, and their packed entries.

    shard-<key>.safetensors, N tokens
      num_entries    [N] uint8     entries the token keeps
      tail_logprob   [N] float16   log of the probability of all other tokens at the cache's temperature; summed, never 1 - sum
      label_logprob  [N] float32   logprob of the realised token at temperature 1
      label_rank     [N] uint16    0 when the realised token is the most likely; 65535 means that or more
      entropy        [N] float16   of the full law at temperature 1, nats
      log_partition  [N] float32   logsumexp of the raw logits
      margin         [N] float16   top-1 minus top-2 logit
      entries        [bytes] uint8 record after record: all token ids, then all probabilities, packed (encoding.py)

Every byte of the file belongs to the header or to a record, and both have checksums: no flipped bit goes unnoticed.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors.numpy import save_file

from components.artifacts import fingerprint_file
from components.errors import ArtifactError
from components.teacher_cache.encoding import COLUMNS, EncodedTokens, pack_record
from components.teacher_cache.format import REPAIR, ShardEntry
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.mapped_tensors import map_tensors
from components.teacher_cache.record_index import RecordIndex, build_index, split_name

Array = npt.NDArray[Any]
ENTRIES = "entries"


@dataclass(frozen=True)
class EncodedRecord:
    """One record as it lies in a shard."""

    columns: dict[str, Array]
    entries: bytes

    @property
    def num_tokens(self) -> int:
        return len(self.columns["num_entries"])


def split_records(tokens: EncodedTokens, counts: Sequence[int], layout: EntryLayout) -> Iterator[EncodedRecord]:
    """Tokens of several records, `counts` of each in order, as records."""
    ends_N = np.cumsum(tokens.columns["num_entries"], dtype=np.int64)
    start = first_entry = 0
    for count in counts:
        stop = start + count
        last_entry = int(ends_N[stop - 1]) if count else first_entry
        own = slice(first_entry, last_entry)
        packed = pack_record(tokens.entry_ids_M[own], tokens.entry_codes_M[own], layout)
        yield EncodedRecord({name: values[start:stop] for name, values in tokens.columns.items()}, packed)
        start, first_entry = stop, last_entry


def save_shard(file: Path, records: Sequence[EncodedRecord]) -> None:
    """Write whole or not at all: what is at `file` afterwards is on the disk."""
    tensors = {
        name: np.concatenate([record.columns[name] for record in records] or [np.zeros(0, dtype=dtype)])
        for name, dtype in COLUMNS.items()
    }
    tensors[ENTRIES] = np.frombuffer(b"".join(record.entries for record in records), dtype=np.uint8)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, temporary)
        temporary.chmod(0o644)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def describe_shard(file: Path) -> ShardEntry:
    """Sizes and checksums of a shard as it is on the disk now."""
    mapped = map_tensors(file, REPAIR)
    checksums = {name: xxhash.xxh3_128_hexdigest(tensor.data) for name, tensor in mapped.tensors.items()}
    return ShardEntry(
        name=file.name,
        num_tokens=len(mapped.tensors["num_entries"]),
        num_bytes=file.stat().st_size,
        header_bytes=len(mapped.header),
        checksum=fingerprint_file(file),
        header_checksum=xxhash.xxh3_128_hexdigest(mapped.header),
        column_checksums=checksums,
    )


def is_whole(file: Path, entry: ShardEntry) -> bool:
    """Whether the file at hand is the one described, every byte of it."""
    return file.exists() and file.stat().st_size == entry.num_bytes and fingerprint_file(file) == entry.checksum


class ShardTensors:
    """A shard by memory map, its size and header compared with the manifest; records are checked as they are read.

    Mapped at the first look into it; `unmap` gives the file descriptor back until the next.
    """

    def __init__(self, file: Path, entry: ShardEntry) -> None:
        try:
            size = file.stat().st_size
            with file.open("rb") as opened:
                header = opened.read(entry.header_bytes)
        except OSError as error:
            raise ArtifactError(f"{file} is missing from the teacher cache ({error.strerror}). Run: {REPAIR}") from None
        if size != entry.num_bytes:
            raise ArtifactError(f"{file} is damaged: it has {size} bytes, its manifest says {entry.num_bytes}. Run: {REPAIR}")
        if xxhash.xxh3_128_hexdigest(header) != entry.header_checksum:
            raise ArtifactError(f"{file} is damaged in its header: its checksum is not the manifest's. Run: {REPAIR}")
        self.file = file
        self._checksums = entry.column_checksums
        self._tensors: dict[str, Array] | None = None

    def _mapped(self) -> dict[str, Array]:
        if self._tensors is None:
            self._tensors = map_tensors(self.file, REPAIR).tensors
        return self._tensors

    @property
    def entries(self) -> Array:
        return self._mapped()[ENTRIES]

    @property
    def columns(self) -> dict[str, Array]:
        tensors = self._mapped()
        return {name: tensors[name] for name in COLUMNS}

    def unmap(self) -> None:
        self._tensors = None

    def record(self, tokens: slice, entries: slice) -> EncodedRecord:
        return EncodedRecord({name: column[tokens] for name, column in self.columns.items()}, self.entries[entries].tobytes())

    def whole_column(self, name: str) -> Array:
        """One column of all its tokens, checked."""
        if xxhash.xxh3_128_hexdigest(self.columns[name].data) != self._checksums[name]:
            raise ArtifactError(f"{self.file} is damaged in its column {name} (not the manifest's checksum). Run: {REPAIR}")
        return self.columns[name]


def record_checksum(record: EncodedRecord) -> int:
    """xxh3-64 of the record's slice of every column, in the order of COLUMNS, and of its entries."""
    digest = xxhash.xxh3_64()
    for name in COLUMNS:
        digest.update(record.columns[name].data)
    digest.update(record.entries)
    return digest.intdigest()


def index_shard(shard: ShardTensors, names: Sequence[str], counts: Sequence[int], layout: EntryLayout) -> RecordIndex:
    """The index of a shard's records, `names` and numbers of tokens in its own order."""
    ends_N = np.concatenate([[0], np.cumsum(shard.columns["num_entries"], dtype=np.int64)])
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    num_bytes = [layout.num_bytes(int(ends_N[stop] - ends_N[start])) for start, stop in itertools.pairwise(starts)]
    offsets = np.concatenate([[0], np.cumsum(num_bytes, dtype=np.int64)])
    if offsets[-1] != len(shard.entries) or starts[-1] != len(shard.columns["num_entries"]):
        raise ArtifactError(f"{shard.file} does not hold the records it was planned for. Run: {REPAIR}")
    checksums = [
        record_checksum(shard.record(slice(starts[place], starts[place + 1]), slice(offsets[place], offsets[place + 1])))
        for place in range(len(names))
    ]
    keys = np.array([split_name(name) for name in names], dtype=np.uint64).reshape(-1, 2)
    return build_index(
        {
            "name_high": keys[:, 0],
            "name_low": keys[:, 1],
            "shard": np.zeros(len(names), dtype=np.uint32),
            "first_token": starts[:-1],
            "num_tokens": np.asarray(counts, dtype=np.uint32),
            "first_byte": offsets[:-1],
            "num_bytes": np.asarray(num_bytes, dtype=np.uint32),
            "checksum": np.asarray(checksums, dtype=np.uint64),
        }
    )
