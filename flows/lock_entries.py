"""Entries of dvc.lock: what a stage was made from and what it made. They are how one clone tells another of a stage.

Written under DVC's own lock on the repository, and whole or not at all; the entries of other stages stay as they are.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import write_text
from components.errors import BallastError
from flows.dvc_graph import dvc_errors

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

Entry = dict[str, Any]
LOCK_FILE, PIPELINE = "dvc.lock", "dvc.yaml"


def open_repo(root: Path) -> "Repo":
    """DVC's repository; its lock is waited for."""
    from dvc.repo import Repo

    return Repo(str(root), _wait_for_lock=True)


def find_stage(repo: "Repo", address: str) -> "Stage":
    """The one stage (or cell of a matrix) of that address, in the dvc.yaml of the root."""
    pipeline = os.path.join(repo.root_dir, PIPELINE)  # DVC's own search is relative to the current folder
    for stage in repo.index.stages:
        if name_of(stage) == address and stage.path == pipeline:
            return stage
    raise BallastError(f"{address!r} is not one stage of {PIPELINE}; `dvc stage list` lists them")


def name_of(stage: "Stage") -> str:
    """`post_train@sft-0`, or the path of the .dvc file of what `dvc add` tracks."""
    return getattr(stage, "name", None) or Path(stage.path).relative_to(stage.repo.root_dir).as_posix()


def find_problems(stage: "Stage") -> list[Any]:
    """Why DVC would run it; nothing means that it is up to date. The caller holds the lock of the repository."""
    return [problem for problems in stage.status().values() for problem in problems if problem != "always changed"]


def is_current(root: Path, address: str) -> bool:
    """Whether DVC calls the stage up to date as things are now (its parents may not be)."""
    from dvc.repo import lock_repo

    with dvc_errors(), open_repo(root) as repo, lock_repo(repo):
        return not find_problems(find_stage(repo, address))


def read_entries(root: Path) -> dict[str, Entry]:
    """All entries, as plain values."""
    from dvc.utils.serialize import load_yaml

    file = root / LOCK_FILE
    stages: dict[str, Entry] = load_yaml(str(file)).get("stages", {}) if file.exists() else {}
    return stages


def merge_entries(repo: "Repo", entries: Mapping[str, Entry | None]) -> None:
    """Put the entries in (None takes one out); the caller holds the lock of the repository."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    assert repo.lock.is_locked
    file = Path(repo.root_dir) / LOCK_FILE
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    contents = parse_yaml_for_update(text, str(file)) or {"schema": "2.0"}
    contents.setdefault("stages", {}).update({name: entry for name, entry in entries.items() if entry is not None})
    for name in [name for name, entry in entries.items() if entry is None]:
        contents["stages"].pop(name, None)
    merged = dumps_yaml(contents)
    if merged != text:
        write_text(file, merged)
    repo._reset()


def path_of(output: "Output") -> str:
    """As dvc.yaml of the root has it: relative, with slashes."""
    return Path(output.fs_path).relative_to(output.repo.root_dir).as_posix()
