"""Manifests that notice damage to themselves: a frozen dataclass as JSON, with the fingerprint of all its fields beside them."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from components.artifacts import fingerprint_json, read_json, write_json
from components.errors import ArtifactError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Manifest = TypeVar("Manifest", bound="DataclassInstance")


def seal_of(manifest: "DataclassInstance") -> str:
    """Fingerprint of all fields: it notices a flipped bit in the manifest itself."""
    return fingerprint_json(asdict(manifest))


def write_sealed(file: Path, manifest: "DataclassInstance") -> None:
    write_json(file, {**asdict(manifest), "seal": seal_of(manifest)})


def read_sealed(
    file: Path, build: Callable[[dict[str, Any]], Manifest], *, version: int, made_by: str, what: str, repair: str
) -> Manifest:
    """The manifest that `build` makes of the fields; refused when it is of another schema version, no such manifest, or damaged.

    `version`: that of `identity.schema_version`; `what` names the manifest in messages, `repair` is the command that mends it.
    """
    raw: dict[str, Any] = read_json(file, made_by=made_by)
    try:
        found = raw["identity"]["schema_version"]
        if found != version:
            raise ArtifactError(f"{file} has schema version {found}, this Ballast reads {version}. Run: {repair}")
        seal = raw.pop("seal")
        manifest = build(raw)
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is not {what} ({error}). Run: {repair}") from None
    if seal != seal_of(manifest):
        raise ArtifactError(f"{file} is damaged: its fields do not match its seal {seal}. Run: {repair}")
    return manifest
