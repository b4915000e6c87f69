"""The teacher cache on disk: identity and manifest. docs/teacher-cache.md describes the whole format for whoever writes a reader.

    teacher_cache/
      manifest.json               identity, counts, size and checksums of every file
      index.safetensors           where each record is                       components/teacher_cache/record_index.py
      shard-<key>.safetensors     the tokens of many records, in a row       components/teacher_cache/shard_file.py

A record is one training row, addressed by its fingerprint (token ids and target marks), so the cache does not depend on batch
size, order, seed or number of ranks. It holds the laws of the row's target tokens, or with `positions: all` those of all tokens
that something predicts.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.artifacts import fingerprint_json
from components.errors import CacheMismatchError
from components.plain_names import plain_name
from components.sealed_manifest import read_sealed, seal_of, write_sealed
from components.teacher_cache.integer_packing import EntryLayout

SCHEMA_VERSION = 4
MANIFEST = "manifest.json"
INDEX = "index.safetensors"
REPAIR = "dvc repro -f -s cache_teacher"
DATA_FIELDS = ("tokenizer_fingerprint", "template_fingerprint", "data_fingerprint")
"""What decides which records there are; all other fields decide what is in a record."""


@dataclass(frozen=True)
class CacheIdentity:
    """All that decides what the cache contains. Two caches with equal identities hold the same laws."""

    model_fingerprint: str
    tokenizer_fingerprint: str
    template_fingerprint: str
    data_fingerprint: str
    source: str = "capture"
    max_entries: int = 64
    tail_mass: float = 0.03
    probability_bits: int = 12
    temperature: float = 1.0
    precision: str = "fp32"
    positions: str = "targets"
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        return fingerprint_json(asdict(self))

    @property
    def law_fingerprint(self) -> str:
        """Of what decides a record's content, whatever other records there are: two caches that share it can share records."""
        return fingerprint_json({name: value for name, value in asdict(self).items() if name not in DATA_FIELDS})


@dataclass(frozen=True)
class ShardEntry:
    """One shard in the manifest: xxh3-128 of the whole file, of its header (`header_bytes` long) and of each column."""

    name: str
    num_tokens: int
    num_bytes: int
    header_bytes: int
    checksum: str
    header_checksum: str
    column_checksums: dict[str, str]


@dataclass(frozen=True)
class CacheManifest:
    """`num_tokens`: of the records of this data; `statistics`: columns that every token has (imported laws lack some)."""

    identity: CacheIdentity
    vocabulary_size: int
    num_records: int
    num_tokens: int
    statistics: list[str]
    index_bytes: int
    index_checksum: str
    shards: list[ShardEntry]

    @property
    def num_bytes(self) -> int:
        return self.index_bytes + sum(shard.num_bytes for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Of all tokens that the shards hold, those of rows that are no longer in the data included."""
        num_tokens = sum(shard.num_tokens for shard in self.shards)
        return self.num_bytes / num_tokens if num_tokens else 0.0

    @property
    def entry_layout(self) -> EntryLayout:
        return EntryLayout.of(self.vocabulary_size, self.identity.probability_bits)

    @property
    def seal(self) -> str:
        """Fingerprint of all fields, kept beside them."""
        return seal_of(self)

    def write(self, folder: Path) -> None:
        write_sealed(folder / MANIFEST, self)


def read_manifest(folder: Path) -> CacheManifest:
    def build(fields: dict[str, Any]) -> CacheManifest:
        shards = [
            ShardEntry(**{**entry, "name": plain_name(entry["name"], str(folder / MANIFEST))}) for entry in fields["shards"]
        ]
        return CacheManifest(**{**fields, "identity": CacheIdentity(**fields["identity"]), "shards": shards})

    return read_sealed(
        folder / MANIFEST,
        build,
        version=SCHEMA_VERSION,
        made_by="cache_teacher",
        what="a teacher-cache manifest",
        repair=REPAIR,
    )


def check_identity(found: CacheIdentity, expected: CacheIdentity, folder: Path) -> None:
    """Refuse a cache made for something else, naming every field that differs with both values."""
    pairs = ((name, value, asdict(expected)[name]) for name, value in asdict(found).items())
    faults = [f"{name}: cache has {value}, this run needs {wanted}" for name, value, wanted in pairs if value != wanted]
    if faults:
        raise CacheMismatchError(f"{folder} was made for something else ({'; '.join(faults)}). Run: dvc repro cache_teacher")
