"""What travels between stages: names, fingerprints, atomic writes.

A fingerprint is the hexadecimal xxh3-128 of content (never of a time or a path), so the same inputs give the same bytes
on every machine. It guards against mistakes, not against attackers.
"""

import csv
import io
import json
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from components.errors import ArtifactError

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
BASE_MODEL = ARTIFACTS / "base_model"
DATA = ARTIFACTS / "data"
TEACHER_CACHE = ARTIFACTS / "teacher_cache"
TOKEN_SCORES = ARTIFACTS / "token_scores"
MODELS = ARTIFACTS / "models"
CURVES = ARTIFACTS / "curves"
PROBES = ARTIFACTS / "probes"
EVALUATIONS = ARTIFACTS / "evaluations"
CHAMPION = ARTIFACTS / "champion.json"
BASE_TEXT = ARTIFACTS / "base_text.json"
COSTS = ARTIFACTS / "costs"
REPORT = ARTIFACTS / "report"
MASK_EXPLORER = ARTIFACTS / "mask_explorer"
REGISTRATION = ARTIFACTS / "registration.json"
WORK = ROOT / ".work"
"""Scratch for unfinished work, keyed by fingerprint: DVC deletes a stage's outputs before it reruns, this it leaves alone."""


def fingerprint_bytes(*parts: bytes) -> str:
    """Fingerprint of several byte strings; lengths are hashed too, so moving a boundary changes it."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def fingerprint_json(value: Any) -> str:
    return fingerprint_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=True).encode())


def fingerprint_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: fingerprint_file(folder / name) for name in sorted(names)}


def fingerprint_row(input_ids: Sequence[int], is_target: Sequence[bool]) -> str:
    """Fingerprint of one training row: its token ids and which of them are targets. Teacher-cache records are addressed by it."""
    ids = array("I", input_ids)
    assert ids.itemsize == 4 and sys.byteorder == "little"
    return fingerprint_bytes(ids.tobytes(), bytes(is_target))


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end, whole or not at all: flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    with write_whole(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys and no NaN: what is not finite must be said in another way (null and a reason)."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with the columns of all rows, in the order they first appear; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_csv(path: Path, *, made_by: str) -> list[dict[str, float]]:
    """Rows of a table of numbers; empty cells are left out."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. Make it with: dvc repro {made_by}") from None
    except (ValueError, TypeError) as error:  # TypeError: a row longer than the head
        raise ArtifactError(
            f"{path} is not a table of numbers ({error}). Make it again with: dvc repro -f -s {made_by}"
        ) from None


def read_json(path: Path, *, made_by: str) -> Any:
    """Read what the stage `made_by` left; a missing or broken file names the command that makes it again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. Make it with: dvc repro {made_by}") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}). Make it again with: dvc repro -f -s {made_by}") from None


def _remove_abandoned(folder: Path, name: str) -> None:
    """What killed processes have left of an artifact with this name."""
    for left in folder.glob(f"{name}.*"):
        process = left.name.removeprefix(f"{name}.").partition(".")[0]
        if not (process.isdigit() and Path(f"/proc/{process}").exists()):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Yield a scratch folder that replaces `target` when the block ends well; nothing half written is ever at `target`.

    The scratch lies under `.work` (same file system), so what a killed process leaves is never part of an artifact.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    (WORK / "staging").mkdir(parents=True, exist_ok=True)
    _remove_abandoned(WORK / "staging", target.name)
    staging = Path(tempfile.mkdtemp(dir=WORK / "staging", prefix=f"{target.name}.{os.getpid()}."))
    try:
        yield staging
        os.chmod(staging, 0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
