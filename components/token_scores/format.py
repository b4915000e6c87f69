"""Token scores on disk: one file of columns, manifest, identity.

    token_scores/
      manifest.json             identity, names of the columns, counts, checksum
      scores.safetensors        the columns of all records, one after the other

A record is one distinct training row, addressed by its fingerprint as in the teacher cache. Per target token n (N tokens,
R records):

    <column>        [N]      float32   components/training/reference_columns.py says what its own mean; users may add others
    record_starts   [R + 1]  int64     record r owns tokens record_starts[r] : record_starts[r + 1]
    record_names    [R, 16]  uint8     the record's fingerprint

With `token_scores.reference: none` and no columns of the user's there are records without a column: the graph of stages is the
same. Weights and files that were read are fingerprinted in `sources`; the identity holds what every reader can know.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts import fingerprint_json
from components.errors import ScoresMismatchError
from components.sealed_manifest import read_sealed, seal_of, write_sealed

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SCORES = "scores.safetensors"
REPAIR = "dvc repro -f -s score_tokens"
MISSING = "nothing"


@dataclass(frozen=True)
class ScoresIdentity:
    """All that decides the scores but for the content of the user's files; `settings` are parameters by their dotted names."""

    model_fingerprint: str
    tokenizer_fingerprint: str
    data_fingerprint: str
    settings: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        return fingerprint_json(asdict(self))

    @property
    def facts(self) -> dict[str, Any]:
        """Fields and settings side by side, to be compared one by one."""
        fields = asdict(self)
        return {**fields.pop("settings"), **fields}


@dataclass(frozen=True)
class ScoresManifest:
    identity: ScoresIdentity
    columns: list[str]
    num_records: int
    num_tokens: int
    checksum: str
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def seal(self) -> str:
        """Fingerprint of all fields, kept beside them."""
        return seal_of(self)

    def write(self, folder: Path) -> None:
        write_sealed(folder / MANIFEST, self)


def read_manifest(folder: Path) -> ScoresManifest:
    def build(fields: dict[str, Any]) -> ScoresManifest:
        return ScoresManifest(**{**fields, "identity": ScoresIdentity(**fields["identity"])})

    return read_sealed(
        folder / MANIFEST,
        build,
        version=SCHEMA_VERSION,
        made_by="score_tokens",
        what="a manifest of token scores",
        repair=REPAIR,
    )


def check_identity(found: ScoresIdentity, expected: ScoresIdentity, folder: Path) -> None:
    """Refuse scores made for something else, naming every field and setting that differs with both values."""
    ours, theirs = expected.facts, found.facts
    faults = [
        f"{name}: scores have {theirs.get(name, MISSING)}, this run needs {ours.get(name, MISSING)}"
        for name in sorted(ours.keys() | theirs.keys())
        if theirs.get(name, MISSING) != ours.get(name, MISSING)
    ]
    if faults:
        raise ScoresMismatchError(f"{folder} was made for something else ({'; '.join(faults)}). Run: dvc repro score_tokens")
