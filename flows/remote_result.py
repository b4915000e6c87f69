"""A stage's result from a worker without a shared disk: fetch what it has made, put its entry into dvc.lock; or change nothing.

outcome = take_result(root, "post_train@sft-0", result, print)   # `result` as flows.remote_work.do_work returns it
"""

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from components.artifacts import write_text
from components.errors import BallastError
from flows.dvc_graph import Outcome, dvc_errors
from flows.dvc_transfer import Carrier, OnLine
from flows.lock_entries import LOCK_FILE, PIPELINE, Entry, find_problems, find_stage, merge_entries, name_of, open_repo, path_of

if TYPE_CHECKING:
    from dvc.stage import Stage


class Result(BaseModel):
    """What travels back."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    remote: str
    entry: Entry
    files: dict[str, str]


def take_result(
    root: Path, address: str, result: dict[str, Any], on_line: OnLine, stopping: threading.Event | None = None
) -> Outcome:
    """Fetch what the stage has made, put its entry into dvc.lock, and see that DVC calls it up to date: all of it or nothing."""
    started = time.perf_counter()
    root, carrier = root.resolve(), Carrier(root, on_line, stopping=stopping)
    try:
        taken = read_result(result)
        with dvc_errors(), open_repo(root) as repo:
            outs = match_outputs(find_stage(repo, address), taken)
        carrier.fetch(outs, taken.remote)
        with dvc_errors():
            message = settle(root, address, taken)
    except BallastError as error:
        message = carrier.redact(str(error))
    return Outcome(address, "failed" if message else "ran", round(time.perf_counter() - started, 1), message)


def read_result(result: dict[str, Any]) -> Result:
    try:
        return Result.model_validate(result)
    except ValidationError as error:
        raise BallastError(
            f"what the worker has sent back is no result of a stage ({error.errors()[0]['msg']}); run it again"
        ) from None


def match_outputs(stage: "Stage", result: Result) -> list[dict[str, Any]]:
    """The cached outputs of the entry; it must have those of dvc.yaml and no other."""
    cached = {path_of(out) for out in stage.outs if out.use_cache}
    plain = {path_of(out) for out in stage.outs if not out.use_cache}
    outs = result.entry.get("outs", [])
    if {out["path"] for out in outs} != cached | plain or set(result.files) != plain:
        raise BallastError(
            f"the worker's result has other outputs than {name_of(stage)} in dvc.yaml here; "
            f"run it again: dvc repro {name_of(stage)}"
        )
    return [out for out in outs if out["path"] in cached]


def settle(root: Path, address: str, result: Result) -> str:
    """Under DVC's lock: the entry, the outputs, and what DVC says then. Returns what is wrong; dvc.lock is then as it was."""
    from dvc.repo import lock_repo

    file = root / LOCK_FILE
    with open_repo(root) as repo, lock_repo(repo):
        before = file.read_text(encoding="utf-8") if file.exists() else None
        problems: list[Any] = ["not settled"]
        try:
            merge_entries(repo, {address: result.entry})
            stage = find_stage(repo, address)
            if lost := [path_of(out) for out in stage.outs if out.use_cache and out.changed_cache()]:
                raise BallastError(
                    f"{', '.join(lost)} of {address} is missing or damaged in the DVC remote {result.remote}; run it again: "
                    f"the worker's clone still has it, or dvc repro {address}"
                )
            if len(result.files) < len(stage.outs):
                repo.checkout(targets=[f"{root / PIPELINE}:{address}"], force=True)
            for path, text in result.files.items():
                write_text(root / path, text)
            problems = find_problems(find_stage(repo, address))
        finally:
            if problems:
                put_back(file, before)
    if not problems:
        return ""
    return (
        f"what the worker made does not fit what is here now: {json.dumps(problems)}. Was anything edited meanwhile? Run it again"
    )


def put_back(file: Path, before: str | None) -> None:
    if before is None:
        file.unlink(missing_ok=True)
    else:
        write_text(file, before)
