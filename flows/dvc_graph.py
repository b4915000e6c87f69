"""DVC's graph as a list of stages, which of them are up to date, and one stage's `dvc repro --single-item`.

The stages, matrix cells included, are DVC's own index: there is no second list. One status call in this process tells at once
what is up to date (1 s for the 30 stages of the default grid, against 25 s for 30 times `dvc repro --single-item`).
"""

import fcntl
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from components.errors import BallastError
from flows.child_process import run_child

LOCK = Path(".work/pipeline.lock")
MAX_ERROR_LINES = 15
EXIT_CODE = re.compile(r"exited with (-?\d+)$")
LOCK_ERRORS = ("Unable to acquire lock", "is busy, it is being blocked by")


class Stage(NamedTuple):
    address: str  # `post_train@sft-0`, as `dvc repro` takes it
    name: str  # `post_train`
    parents: tuple[str, ...]  # addresses of the stages whose outputs it depends on
    is_up_to_date: bool  # by itself: its parents may not be


class Outcome(NamedTuple):
    stage: str
    state: str  # ran | cached | failed | not reached
    seconds: float = 0.0
    message: str = ""


RunStage = Callable[[Stage, bool], Outcome]
"""Takes a stage and whether it is settled (up to date like all its ancestors, so that nobody has to ask DVC again)."""


def find_root() -> Path:
    """The root of the DVC repository around the current folder."""
    with _dvc_errors():
        from dvc.repo import Repo

        return Path(Repo.find_root())


def read_stages(targets: Sequence[str] = ()) -> list[Stage]:
    """The targets and all they depend on (without targets: everything), parents first, otherwise in the order of dvc.yaml.

    A target is what `dvc repro` takes: a stage, a matrix (all its cells), one cell, a .dvc file.
    """
    with _dvc_errors():
        import networkx as nx
        from dvc.repo import Repo

        with Repo() as repo:
            graph = repo.index.graph.copy()  # from each stage to the stages it depends on
            graph.remove_edges_from([edge for edge in graph.edges if edge[0].frozen])  # as `dvc repro` takes them
            position = {stage: index for index, stage in enumerate(repo.index.stages)}
            wanted = {stage for target in targets for stage in repo.stage.collect(target)} or set(graph)
            wanted = wanted.union(*(nx.descendants(graph, stage) for stage in wanted))
            names = [stage.addressing for stage in wanted] if targets else None  # hash no more than is asked for
            changed = repo.status(targets=names, check_updates=False)  # of each stage what `dvc repro` would decide now
            order = nx.lexicographical_topological_sort(graph.subgraph(wanted).reverse(), key=position.__getitem__)
            return [
                Stage(
                    address=stage.addressing,
                    name=getattr(stage, "name", stage.addressing).partition("@")[0],
                    parents=tuple(parent.addressing for parent in sorted(graph.successors(stage), key=position.__getitem__)),
                    is_up_to_date=stage.addressing not in changed,
                )
                for stage in order
            ]


def find_settled(stages: Iterable[Stage]) -> set[str]:
    """Addresses of what is up to date and stays so: all its ancestors are up to date as well. Any other must be asked anew."""
    settled: set[str] = set()
    for stage in stages:  # parents first
        if stage.is_up_to_date and settled.issuperset(stage.parents):
            settled.add(stage.address)
    return settled


def run_stages(stages: Sequence[Stage], run: RunStage) -> list[Outcome]:
    """Every stage whose ancestors are good, parents first. What is settled comes first of all: that is when it was asked."""
    settled = find_settled(stages)
    outcomes: dict[str, Outcome] = {}
    for stage in sorted(stages, key=lambda stage: stage.address not in settled):
        is_reached = all(is_good(outcomes[parent]) for parent in stage.parents)
        outcomes[stage.address] = run(stage, stage.address in settled) if is_reached else Outcome(stage.address, "not reached")
    return [outcomes[stage.address] for stage in stages]


def run_stage(stage: Stage, is_settled: bool, on_line: Callable[[str], None], lock: int) -> Outcome:
    if is_settled:
        return Outcome(stage.address, "cached", message="neither it nor what it depends on has changed")
    started = time.perf_counter()
    state, message = reproduce(stage.address, on_line, [lock])
    return Outcome(stage.address, state, round(time.perf_counter() - started, 1), message)


def is_good(outcome: Outcome) -> bool:
    return outcome.state in ("ran", "cached")


def summarise(outcomes: Sequence[Outcome]) -> str:
    """`2 ran, 28 cached`, and below it what each failed stage has said."""
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("ran", "cached", "failed", "not reached")}
    head = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([head, *(f"{outcome.stage} failed: {outcome.message}" for outcome in outcomes if outcome.state == "failed")])


def reproduce(address: str, on_line: Callable[[str], None], held_files: Sequence[int] = ()) -> tuple[str, str]:
    """`dvc repro --single-item <address>`: DVC decides whether the stage has to run. Returns what became of it, and a message."""
    last_lines: deque[str] = deque(maxlen=200)

    def keep_and_pass_on(line: str) -> None:
        last_lines.append(line)
        on_line(line)

    # Without Prefect's variables: a stage that finds PREFECT_API_URL makes a flow run of itself, and here it is a task already.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", address]
    code = run_child(command, keep_and_pass_on, {**environ, "PYTHONUNBUFFERED": "1"}, held_files)
    if code != 0:
        return ("failed", describe_failure(list(last_lines), code))
    if not {f"Stage '{address}' didn't change, skipping", f"'{address}' didn't change, skipping"}.isdisjoint(last_lines):
        return ("cached", "nothing it depends on has changed")
    if any(line.startswith(f"Stage '{address}' is cached - skipping run") for line in last_lines):
        return ("cached", "its outputs for these inputs came out of DVC's run cache")
    return ("ran", "")


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


@contextmanager
def _dvc_errors() -> Iterator[None]:
    """DVC's errors, told as ours."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise BallastError(describe_dvc_error(error)) from error


def describe_dvc_error(error: BaseException) -> str:
    if any(sign in str(error) for sign in LOCK_ERRORS):
        return f"another DVC process works in this repository; wait for its end. ({error})"
    causes = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        causes.append(str(error))
    return "DVC cannot read the pipeline: " + " - ".join(dict.fromkeys(filter(None, causes)))


@contextmanager
def hold_lock(root: Path) -> Iterator[int]:
    """One pipeline at a time on one repository. Its running stage has the lock, too: it may outlive a killed pipeline a while."""
    (root / LOCK).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BallastError(describe_holder(os.pread(descriptor, 32, 0).decode(), root)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def describe_holder(pid: str, root: Path) -> str:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return f"the last stage of a pipeline that was killed (pid {pid or 'unknown'}) is still ending in {root}; try again soon"
    except PermissionError:
        pass
    return f"another pipeline (pid {pid}) is running in {root}; wait for its end, or end it with: kill {pid}"
