"""The teacher cache on disk: manifest, shards, identity.

    teacher_cache/
      manifest.json             identity, counts, checksum of each shard
      shard-00000.safetensors   tensors of many records, one after the other

A record is one training row, addressed by its fingerprint (token ids and target marks), so the cache does not depend on
batch size, order, seed or number of ranks. Per target token n (with `positions: all` per predicted token, prompt included;
N tokens in a shard, R records, K entries):

    entry_ids       [N, K]   int32     the top K tokens of the full softmax at `temperature`
    entry_logprobs  [N, K]   float16   their logprobs
    tail_logprob    [N]      float16   log of the probability of all other tokens; stored, never 1 - sum (cancellation)
    label_logprob   [N]      float32   logprob of the realised token at temperature 1
    label_rank      [N]      int32     0 when the realised token is the most likely
    entropy         [N]      float32   of the full law at temperature 1, nats
    log_partition   [N]      float32   logsumexp of the raw logits
    margin          [N]      float32   top-1 minus top-2 logit
    record_starts   [R + 1]  int64     record r owns tokens record_starts[r] : record_starts[r + 1]
    record_names    [R, 16]  uint8     the record's fingerprint

safetensors notices a truncated file but not a flipped bit, hence a checksum of each shard in the manifest.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts import fingerprint_json
from components.errors import CacheMismatchError
from components.sealed_manifest import read_sealed, seal_of, write_sealed

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
REPAIR = "dvc repro -f -s cache_teacher"


@dataclass(frozen=True)
class CacheIdentity:
    """All that decides what the cache contains. Two caches with equal identities hold the same laws."""

    model_fingerprint: str
    tokenizer_fingerprint: str
    data_fingerprint: str
    num_entries: int
    temperature: float
    precision: str
    positions: str = "targets"
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        return fingerprint_json(asdict(self))


@dataclass(frozen=True)
class CacheManifest:
    identity: CacheIdentity
    vocabulary_size: int
    num_records: int
    num_tokens: int
    num_bytes: int
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0

    @property
    def seal(self) -> str:
        """Fingerprint of all fields, kept beside them."""
        return seal_of(self)

    def write(self, folder: Path) -> None:
        write_sealed(folder / MANIFEST, self)


def read_manifest(folder: Path) -> CacheManifest:
    def build(fields: dict[str, Any]) -> CacheManifest:
        return CacheManifest(**{**fields, "identity": CacheIdentity(**fields["identity"])})

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
