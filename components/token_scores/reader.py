"""Reading token scores: random access by row fingerprint, refused unless they were made for exactly this run."""

import itertools
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from components.artifacts import fingerprint_file
from components.errors import ArtifactError, ScoresMismatchError
from components.token_scores.format import REPAIR, SCORES, ScoresIdentity, check_identity, read_manifest

MADE_BY = {
    "reference_nll": "token_scores.reference: cross_fit (or local, with reference_path)",
    "reference_entropy": "token_scores.reference: cross_fit (or local, with reference_path)",
    "mutual_information": "token_scores.reference: cross_fit with num_members 4 or more (with 2, one member scores each token)",
}


class TokenScoreReader:
    """Opening checks identity and checksum, reading checks the number of target tokens."""

    def __init__(self, folder: Path, expected: ScoresIdentity) -> None:
        manifest = read_manifest(folder)
        check_identity(manifest.identity, expected, folder)
        self.manifest = manifest
        self._folder = folder
        tensors = _open(folder / SCORES, manifest.checksum)
        self._columns: dict[str, Tensor] = {name: tensors.get_tensor(name) for name in manifest.columns}
        names = tensors.get_tensor("record_names").numpy()
        bounds = itertools.pairwise(tensors.get_tensor("record_starts").tolist())
        self._places = {names[record].tobytes().hex(): slice(*bound) for record, bound in enumerate(bounds)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, sorted; none where the stage had nothing to score with."""
        return tuple(self.manifest.columns)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, fingerprint: str, num_targets: int) -> dict[str, Tensor]:
        """The columns of one record, [N] each; `fingerprint` must be computed from the batch's own token ids."""
        place = self._places.get(fingerprint)
        if place is None or place.stop - place.start != num_targets:
            raise ScoresMismatchError(
                f"record {fingerprint} ({num_targets} targets) is not in {self._folder}, which was made for data "
                f"{self.manifest.identity.data_fingerprint}. Run: dvc repro score_tokens"
            )
        return {name: column_N[place] for name, column_N in self._columns.items()}

    def column(self, name: str) -> Tensor:
        """One column over all records, [N], in their order (for thresholds and histograms)."""
        self.require([name])
        return self._columns[name]

    def require(self, names: list[str] | tuple[str, ...]) -> None:
        """Refuse, before anything is trained, to go on without one of these columns."""
        for name in names:
            if name not in self._columns:
                makes_it = MADE_BY.get(name, f"token_scores.columns: [{name}], with its numbers at token_scores.columns_path")
                raise ScoresMismatchError(
                    f"{self._folder} has no column {name!r}, only {list(self.names)}. In params.yaml set {makes_it}; "
                    "then run: dvc repro score_tokens"
                )


def _open(file: Path, checksum: str) -> Any:
    if not file.exists():
        raise ArtifactError(f"{file} is missing from the token scores. Run: {REPAIR}")
    if fingerprint_file(file) != checksum:
        raise ArtifactError(f"{file} is damaged: its checksum is not the manifest's {checksum}. Run: {REPAIR}")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ArtifactError(f"{file} cannot be read ({error}). Run: {REPAIR}") from None
