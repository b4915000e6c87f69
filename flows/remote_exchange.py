"""A stage on a worker without a shared disk, as the dispatcher sees it: send the work, take the result.

    work = send_work(root, "post_train@sft-0", print)                   # here, where the pipeline runs
    outcome, result = do_work(clone, "post_train@sft-0", work, print)   # there, in a clone: flows/remote_work.py
    outcome = take_result(root, "post_train@sft-0", result, print)      # here again: flows/remote_result.py

Code, dvc.yaml and params.yaml travel through git, data through the DVC remote, and what says which data (entries of dvc.lock)
with the flow run. docs/workers-without-shared-disk.md tells how to set it up.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from components.errors import BallastError
from flows.commit_checkouts import run_git
from flows.dvc_graph import dvc_errors
from flows.dvc_transfer import Carrier, OnLine
from flows.lock_entries import (
    LOCK_FILE,
    Entry,
    find_stage,
    name_of,
    open_repo,
    path_of,
    read_entries,
)
from flows.remote_settings import read_remote

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

MAX_FILE_BYTES = 64 * 1024
MAX_WORK_BYTES = 400_000
"""Prefect takes 512 kB of parameters."""
PIPELINE_FILES = ("dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore")
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Work(BaseModel):
    """What travels to the worker, as plain JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    commit: Commit
    remote: str
    parents: dict[str, Entry]
    """Entries of dvc.lock of the stages whose outputs the stage depends on."""
    files: dict[str, str]
    """Outputs of theirs that DVC does not cache: path and text."""


def send_work(root: Path, address: str, on_line: OnLine, stopping: threading.Event | None = None) -> dict[str, Any]:
    """Refuse what a worker could not do, push what it needs, return the work (`Work`) as a JSON object of at most 400 kB."""
    root = root.resolve()
    remote = read_remote(root)
    carrier = Carrier(root, on_line, stopping=stopping)
    with dvc_errors(), open_repo(root) as repo:
        stage = find_stage(repo, address)
        refuse_folders_without_cache(stage)
        used = find_used_outputs(repo, stage)
        check_in_git(repo, carrier.environ, list_own_files(repo, stage, used), address)
        outs, files = collect_outputs(used)
        known = read_entries(root)
        names = dict.fromkeys(name_of(out.stage) for out in used if out.stage.cmd)
        parents = {name: known[name] for name in names}
    work = Work(commit=find_pushed_commit(root, carrier.environ), remote=remote, parents=parents, files=files).model_dump()
    size = len(json.dumps(work))
    if size > MAX_WORK_BYTES:
        raise BallastError(
            f"what {address} needs to know is {size} bytes, and a flow run takes {MAX_WORK_BYTES}; "
            f"route it `here` in params.yaml (routing.stages.{address.partition('@')[0]})"
        )
    carrier.push(outs, remote)
    return work


def find_used_outputs(repo: "Repo", stage: "Stage") -> "list[Output]":
    """Outputs of other stages (and of `dvc add`) that overlap with what the stage depends on."""
    paths = [path_of(dependency) for dependency in plain_dependencies(stage)]
    others = [out for out in repo.index.outs if out.stage is not stage]
    return [out for out in others if any(overlap(path_of(out), path) for path in paths)]


def plain_dependencies(stage: "Stage") -> "list[Output]":
    from dvc.dependency import ParamsDependency

    return [dependency for dependency in stage.deps if not isinstance(dependency, ParamsDependency)]


def overlap(first: str, second: str) -> bool:
    return first == second or first.startswith(f"{second}/") or second.startswith(f"{first}/")


def list_own_files(repo: "Repo", stage: "Stage", used: "Iterable[Output]") -> list[str]:
    """What the stage needs from git: its dependencies that no other stage makes, params.yaml, dvc.yaml, `.dvc` files."""
    made = [path_of(out) for out in used]
    taken = [path_of(dependency) for dependency in stage.deps]
    taken = [path for path in taken if not any(path == out or path.startswith(f"{out}/") for out in made)]
    added = [Path(out.stage.path).relative_to(repo.root_dir).as_posix() for out in used if not out.stage.cmd]
    pipeline = [name for name in PIPELINE_FILES if (Path(repo.root_dir) / name).exists()]
    return sorted({*taken, *added, *pipeline})


def check_in_git(repo: "Repo", environ: Mapping[str, str], paths: list[str], address: str) -> None:
    """Each path as it is here must be in the commit: the worker gets it from nowhere else."""
    root = Path(repo.root_dir)
    missing = [path for path in paths if not (root / path).exists()]
    if missing:
        raise BallastError(f"{address} depends on {missing[0]}, which is not in {root}; make it: dvc repro {address}")
    changed = run_git(root, environ, "diff", "--name-only", "-z", "HEAD", "--", *paths).split("\0")[:-1]
    if changed := [path for path in changed if path != LOCK_FILE]:
        raise BallastError(
            f"{', '.join(changed)} changed since the commit, and {address} depends on it: a worker would run the committed one. "
            f"Commit and push: git commit {' '.join(changed)} && git push"
        )
    others = find_untracked(repo, environ, paths)
    new = [path for path in others if path in find_untracked(repo, environ, paths, "--exclude-standard")]
    if new:
        raise BallastError(
            f"{address} depends on {', '.join(new[:5])}, not in git yet: git add {new[0]}, then commit and push (or remove it)"
        )
    if others:
        tops = sorted({next(path for path in paths if overlap(path, name)) for name in others})
        raise BallastError(
            f"{address} depends on {', '.join(others[:5])}{' …' if len(others) > 5 else ''}, neither in git nor tracked by DVC. "
            f"Let DVC track it: git rm -r -q --cached --ignore-unmatch {' '.join(tops)} && dvc add {' '.join(tops)}, "
            f"then commit {', '.join(f'{top}.dvc' for top in tops)} and push (or remove what is not wanted)"
        )


def find_untracked(repo: "Repo", environ: Mapping[str, str], paths: list[str], *options: str) -> list[str]:
    """Files below the paths that git does not hold and no stage makes; what .dvcignore leaves out is no part of a dependency."""
    listed = run_git(Path(repo.root_dir), environ, "ls-files", "--others", "-z", *options, "--", *paths).split("\0")[:-1]
    outputs = [path_of(out) for out in repo.index.outs]
    unknown = [path for path in listed if not any(overlap(path, out) for out in outputs)]
    return [path for path in unknown if not repo.dvcignore.is_ignored_file(str(Path(repo.root_dir) / path))]


def find_pushed_commit(root: Path, environ: Mapping[str, str]) -> str:
    """The commit of the working tree, if the git remote is known to have it."""
    commit = run_git(root, environ, "rev-parse", "HEAD").strip()
    if not run_git(root, environ, "remote").split().count("origin"):
        raise BallastError(f"{root} has no git remote `origin`, from which a worker gets the code: git remote add origin <url>")
    if run_git(root, environ, "for-each-ref", "--contains", commit, "refs/remotes/origin").strip():
        return commit
    if commit not in run_git(root, environ, "ls-remote", "origin"):
        raise BallastError(
            f"commit {commit} is not on the git remote `origin`, from which a worker gets the code: git push origin HEAD"
        )
    return commit


def collect_outputs(used: "Iterable[Output]") -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Of the outputs: those for the remote, as dvc.lock has them, and the texts of those that DVC does not cache."""
    outs, files = [], {}
    for out in used:
        path, name = path_of(out), name_of(out.stage)
        if not out.use_cache:
            files[path] = read_small_text(Path(out.fs_path), path, f"dvc repro {name}")
            continue
        if not out.hash_info:
            raise BallastError(f"{path} has no entry in {LOCK_FILE}: {name} has never run here; run it: dvc repro {name}")
        if "modified" in out.workspace_status().values():
            raise BallastError(
                f"{path} is not what {LOCK_FILE} says; make it anew: dvc repro {name}, or take it back: dvc checkout {path}"
            )
        if out.changed_cache():
            raise BallastError(
                f"{path} is not whole in DVC's cache here; get it: dvc pull {path}, or make it anew: dvc repro -f {name}"
            )
        outs.append(describe_output(out))
    return outs, files


def describe_output(out: "Output") -> dict[str, Any]:
    """Path, hash and size, as an entry of dvc.lock or of a .dvc file has them."""
    meta = {name: value for name, value in out.meta.to_dict().items() if name in ("size", "nfiles", "isexec")}
    return {"path": path_of(out), "hash": out.hash_name, **out.hash_info.to_dict(), **meta}


def read_small_text(file: Path, path: str, repair: str) -> str:
    """A file that travels with the flow run itself: UTF-8 and at most 64 KiB."""
    if not file.is_file():
        raise BallastError(f"{path} is not there; make it: {repair}")
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise BallastError(
            f"{path} has {size} bytes and DVC does not cache it (`cache: false`); a flow run takes {MAX_FILE_BYTES}. "
            "Let DVC cache it (dvc.yaml), or route the stages that make and need it `here` (params.yaml)"
        )
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BallastError(f"{path} is no text and not cached by DVC (`cache: false`); let DVC cache it (dvc.yaml)") from None


def refuse_folders_without_cache(stage: "Stage") -> None:
    """Before an hour of work: what could not travel back."""
    for out in stage.outs:
        if not out.use_cache and Path(out.fs_path).is_dir():
            raise BallastError(
                f"{path_of(out)} is a folder that DVC does not cache: {name_of(stage)} cannot run on a worker; route it `here`"
            )
