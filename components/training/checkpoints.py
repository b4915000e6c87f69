"""Checkpoints that can be trusted after a kill: a checkpoint counts only with its seal, written last.

transformers' own checkpoints are not atomic and a half-written newest one stops the resume; the seal lists every file with
its size and checksum, and the newest sealed checkpoint that still matches wins.
"""

import json
import shutil
from pathlib import Path

from components.artifacts import fingerprint_file, write_json

SEAL = "seal.json"


def seal_checkpoint(folder: Path) -> None:
    """Write the seal: from now on the checkpoint counts."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SEAL]
    write_json(folder / SEAL, {str(file.relative_to(folder)): [file.stat().st_size, fingerprint_file(file)] for file in files})


def is_sealed(folder: Path) -> bool:
    """True when every file named by the seal is there, unchanged."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return all(
            (folder / name).stat().st_size == size and fingerprint_file(folder / name) == checksum
            for name, (size, checksum) in seal.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):  # the last two: JSON, but no seal
        return False


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of `folder` that is whole; damaged newer ones are removed, for the Trainer would stumble on them."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    for _, path in sorted(found, reverse=True):
        if is_sealed(path):
            return path
        shutil.rmtree(path, ignore_errors=True)  # every rank comes here, and one is first
    return None
