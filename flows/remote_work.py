"""A stage on a worker without a shared disk, as the worker sees it: take the work, run the stage, return the result.

    outcome, result = do_work(clone, "post_train@sft-0", work, print)

In a checkout of the work's commit beside the clone's own tree (flows/commit_checkouts.py): pull what the stage depends on, `dvc
repro --single-item` (which finds a result of another worker in the run cache of the remote), push what it made and the run cache.
"""

import fcntl
import re
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from components.artifacts import write_text
from components.errors import BallastError
from flows.commit_checkouts import hold, open_checkout
from flows.dvc_graph import Outcome, dvc_errors
from flows.dvc_stage import is_transient, reproduce
from flows.dvc_transfer import Carrier, OnLine
from flows.lock_entries import find_stage, merge_entries, open_repo, path_of, read_entries
from flows.remote_exchange import (
    Work,
    find_used_outputs,
    read_small_text,
    refuse_folders_without_cache,
)
from flows.remote_result import Result

Done = tuple[Outcome, dict[str, Any] | None]


def do_work(root: Path, address: str, work: dict[str, Any], on_line: OnLine, held_files: Sequence[int] = ()) -> Done:
    """Run the stage in a checkout of this clone. The result (`Result` as a JSON object) is None unless the outcome is good.

    `held_files` stay open in the child processes. The second time, and after a kill, it goes on in the same checkout. One process
    in a clone works on a stage: the next one waits, also for the last process of one that was killed.
    """
    started = time.perf_counter()
    root, taken = root.resolve(), Work.model_validate(work)
    carrier = Carrier(root, on_line)
    result = None
    try:
        with open_checkout(root, taken.commit, carrier.environ) as (folder, in_use):
            name = re.sub(r"[^\w.@+-]", "_", address)
            with hold(folder.with_name(f"{name}.busy"), fcntl.LOCK_EX) as busy:
                carrier.held_files = [*held_files, in_use, busy]
                state, message = run_in_checkout(carrier, folder, address, taken)
                if state in ("ran", "cached"):
                    result = deliver(carrier, folder, address, taken.remote)
    except BallastError as error:
        state, message = "failed", str(error)
    is_lost = state == "failed" and is_transient(message)
    outcome = Outcome(address, state, round(time.perf_counter() - started, 1), carrier.redact(message), is_lost)
    return outcome, result.model_dump() if result else None


def run_in_checkout(carrier: Carrier, folder: Path, address: str, work: Work) -> tuple[str, str]:
    carrier.say(f"{address}: commit {work.commit[:12]} in {folder}")
    need_remote(folder, work.remote)
    with dvc_errors(), open_repo(folder) as repo:
        stage = find_stage(repo, address)
        is_lost = any(not out.use_cache and not out.exists for out in stage.outs)  # DVC would pull the others and be content
        with repo.lock:
            merge_entries(repo, {**work.parents, **({address: None} if is_lost else {})})
        stage = find_stage(repo, address)
        refuse_folders_without_cache(stage)
        used = find_used_outputs(repo, stage)
        write_files(folder, work, {path_of(out) for out in used if not out.use_cache})
        # Whole outputs, where it may name one file of a folder: stages read a manifest beside it, too.
        targets = sorted(path_of(out) for out in used if out.use_cache)
    if targets:
        repair = (
            f"what {address} needs is missing or damaged in the remote {work.remote}; push it from where it was made: dvc push"
        )
        carrier.run(folder, ["pull", "--force", "--remote", work.remote, *targets], repair)
    return reproduce(address, carrier.say, carrier.held_files, environ=carrier.environ, options=["--pull"], root=folder)


def need_remote(folder: Path, remote: str) -> None:
    with open_repo(folder) as repo:
        if remote not in repo.config["remote"]:
            raise BallastError(
                f"the DVC remote {remote!r} is neither in the commit's .dvc/config nor in the worker's own settings; "
                f"commit it where it was added, or here: dvc remote add --local {remote} <url>"
            )


def write_files(folder: Path, work: Work, expected: set[str]) -> None:
    """The outputs that DVC does not cache. Only those that dvc.yaml of the commit names are written."""
    strange = [path for path in work.files if path not in expected or ".." in PurePosixPath(path).parts]
    if strange or expected - set(work.files):
        raise BallastError(
            f"the work brings {sorted(work.files)} where its commit needs {sorted(expected)}; send it again from that commit"
        )
    for path, text in work.files.items():
        write_text(folder / path, text)


def deliver(carrier: Carrier, folder: Path, address: str, remote: str) -> Result:
    """Push the outputs and the run cache; the stage's entry and its small outputs are the result."""
    with dvc_errors(), open_repo(folder) as repo:
        plain = [path_of(out) for out in find_stage(repo, address).outs if not out.use_cache]
        files = {path: read_small_text(folder / path, path, f"dvc repro {address}") for path in plain}
    carrier.run(folder, ["push", "--run-cache", "--remote", remote, address], "see that the remote can be written to")
    return Result(remote=remote, entry=read_entries(folder)[address], files=files)
