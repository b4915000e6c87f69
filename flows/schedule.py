"""In which order and how many at a time stages run. DVC says what depends on what; nothing here knows Prefect."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

from components.run_params import HERE
from flows.dvc_graph import Outcome, Stage

RunStage = Callable[[Stage, bool], Outcome]
"""Takes a stage and whether it is settled (up to date like all its ancestors, so that nobody has to ask DVC again)."""
MAX_THREADS = 64


class Places:
    """Where a stage runs and how many run there at a time; by default all run here, one by one."""

    def pool_of(self, stage: Stage) -> str:
        return HERE

    def num_at_once(self, pool: str) -> int:
        return 1


def run_stages(
    stages: Sequence[Stage], run: RunStage, places: Places | None = None, stopping: threading.Event | None = None
) -> list[Outcome]:
    """Every stage whose ancestors are good, parents first, independent ones at the same time as far as their place allows.

    What is settled comes first of all: that is when it was asked. An exception (a signal's, too) sets `stopping`, which ends the
    stages that run, and is raised when the last of them has gone.
    """
    places, stopping = places or Places(), stopping or threading.Event()
    settled = find_settled(stages)
    waiting = sorted(stages, key=lambda stage: stage.address not in settled)
    outcomes: dict[str, Outcome] = {}
    running: dict[Future[Outcome], Stage] = {}
    with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="stage") as threads:
        try:
            while waiting or running:
                for stage in find_startable(waiting, running.values(), outcomes, places):
                    waiting.remove(stage)
                    running[threads.submit(copy_context().run, run, stage, stage.address in settled)] = stage
                waiting = _drop_unreachable(waiting, outcomes)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcomes[running.pop(future).address] = future.result()
        except BaseException:
            stopping.set()
            raise
    return [outcomes[stage.address] for stage in stages]


def find_startable(
    waiting: Iterable[Stage], running: Iterable[Stage], outcomes: dict[str, Outcome], places: Places
) -> list[Stage]:
    """The waiting stages, in their order, whose parents are good and whose place is free."""
    num_there = Counter(places.pool_of(stage) for stage in running)
    found = []
    for stage in waiting:
        pool = places.pool_of(stage)
        is_ready = all(parent in outcomes and is_good(outcomes[parent]) for parent in stage.parents)
        if is_ready and num_there[pool] < places.num_at_once(pool):
            num_there[pool] += 1
            found.append(stage)
    return found


def _drop_unreachable(waiting: list[Stage], outcomes: dict[str, Outcome]) -> list[Stage]:
    """Those whose parents have failed get their outcome and wait no more, parents first, so that it passes on in one go."""
    left = []
    for stage in waiting:
        if any(parent in outcomes and not is_good(outcomes[parent]) for parent in stage.parents):
            outcomes[stage.address] = Outcome(stage.address, "not reached")
        else:
            left.append(stage)
    return left


def find_settled(stages: Iterable[Stage]) -> set[str]:
    """Addresses of what is up to date and stays so: all its ancestors are up to date as well. Any other must be asked anew."""
    settled: set[str] = set()
    for stage in stages:  # parents first
        if stage.is_up_to_date and settled.issuperset(stage.parents):
            settled.add(stage.address)
    return settled


def is_good(outcome: Outcome) -> bool:
    return outcome.state in ("ran", "cached")


def summarise(outcomes: Sequence[Outcome]) -> str:
    """`2 ran, 28 cached`, and below it what each failed stage has said."""
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("ran", "cached", "failed", "not reached")}
    head = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([head, *(f"{outcome.stage} failed: {outcome.message}" for outcome in outcomes if outcome.state == "failed")])
