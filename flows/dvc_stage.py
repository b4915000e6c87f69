"""One stage's `dvc repro --single-item`: whether it ran, was up to date or failed, and what it said."""

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flows.child_process import run_child
from flows.dvc_graph import LOCK_ERRORS, Outcome, Stage, find_root
from flows.gpu_lease import hold_gpus
from flows.redaction import redact
from flows.routing import num_gpus

MAX_ERROR_LINES = 15
EXIT_CODE = re.compile(r"exited with (-?\d+)$")
TRANSIENT_CODES = {75, 137, 143, -9, -15}
"""A stage that was killed (memory, a preempted machine), or says that another time may do: it goes on when repeated."""


def run_stage(
    stage: Stage,
    is_settled: bool,
    on_line: Callable[[str], None],
    held_files: Sequence[int],
    stopping: threading.Event | None = None,
) -> Outcome:
    if is_settled:
        return Outcome(stage.address, "cached", message="neither it nor what it depends on has changed")
    started = time.perf_counter()
    with hold_gpus(num_gpus(stage, find_root()), on_line, stopping) as lease:
        files = [*held_files, *lease.held_files]
        state, message = reproduce(stage.address, on_line, files, stopping=stopping, environ=lease.environ)
    is_lost = state == "failed" and is_transient(message)
    return Outcome(stage.address, state, round(time.perf_counter() - started, 1), message, is_lost)


def reproduce(
    address: str,
    on_line: Callable[[str], None],
    held_files: Sequence[int] = (),
    *,
    stopping: threading.Event | None = None,
    environ: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    root: Path | None = None,
) -> tuple[str, str]:
    """`dvc repro --single-item <address>`: DVC decides whether the stage has to run. Returns what became of it, and a message.

    `environ`: variables on top of ours; `options`: further options of `dvc repro`; `root`: a repository other than that of the
    current folder. DVC locks the whole repository while it reads and writes its files, seconds at a time, and by itself waits 3 s
    for it: a stage that ended meanwhile would not be recorded. So it is made to wait.
    """
    dvc = [sys.executable, "-m", "dvc", "--cd", str(root or "."), "--wait-for-lock"]
    lines: deque[str] = deque(maxlen=200)
    on_clean_line = _redacted(_keep_and_pass_on(lines, on_line), {**os.environ, **(environ or {})})
    command = [*dvc, "repro", *options, "--single-item", address]
    code = run_child(command, on_clean_line, stage_environ(environ), held_files, stopping=stopping)
    return read_outcome(address, list(lines), code)


def stage_environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Without Prefect's variables: a stage that finds PREFECT_API_URL makes a flow run of itself, and it is part of one."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**environ, "PYTHONUNBUFFERED": "1", **(more or {})}


def read_outcome(address: str, lines: list[str], code: int) -> tuple[str, str]:
    """State and message, from the output of `dvc repro` and its exit code."""
    if code != 0:
        return ("failed", describe_failure(lines, code))
    if not {f"Stage '{address}' didn't change, skipping", f"'{address}' didn't change, skipping"}.isdisjoint(lines):
        return ("cached", "nothing it depends on has changed")
    if any(line.startswith(f"Stage '{address}' is cached - skipping run") for line in lines):
        return ("cached", "its outputs for these inputs came out of DVC's run cache")
    if f"Pulling data for stage: '{address}'" in lines and f"Running stage '{address}':" not in lines:
        return ("cached", "its outputs came out of the DVC remote, as dvc.lock has them")
    return ("ran", "")


def is_transient(message: str) -> bool:
    """Whether a failed stage may do better when repeated, by the exit code at the end of its message."""
    found = re.search(r"\(exit code (-?\d+)\)$", message)
    return found is not None and int(found[1]) in TRANSIENT_CODES


def describe_failure(lines: list[str], code: int) -> str:
    """The stage's own last words. DVC's exit code is 255 for every failure, and its message repeats the command only."""
    dvc_words = [line for line in lines if line.startswith("ERROR: ")]
    if any(sign in line for line in lines for sign in LOCK_ERRORS):
        return "\n".join(["another DVC process works in this repository; wait for its end.", *dvc_words])
    exit_code = EXIT_CODE.search(dvc_words[-1]) if dvc_words else None
    begins = [index for index, line in enumerate(lines) if line.startswith("> ")]
    words = [line for line in lines[begins[0] + 1 if begins else 0 :] if line not in dvc_words]
    starts = [i for i, line in enumerate(words) if line.startswith(("error:", "Traceback (most recent call last)"))]
    words = words[starts[-1] :] if starts else words[-5:]
    if len(words) > MAX_ERROR_LINES:  # the last words of a traceback matter most
        words = ["…", *words[-MAX_ERROR_LINES:]]
    return "\n".join([*(words or dvc_words), f"(exit code {exit_code[1] if exit_code else code})"])


def _redacted(on_line: Callable[[str], None], environ: Mapping[str, str]) -> Callable[[str], None]:
    """What a stage prints is kept in Prefect's database, for all who can see the page: without the secrets of its environment."""
    return lambda line: on_line(redact(line, environ))


def _keep_and_pass_on(lines: deque[str], on_line: Callable[[str], None]) -> Callable[[str], None]:
    def keep(line: str) -> None:
        lines.append(line)
        on_line(line)

    return keep
