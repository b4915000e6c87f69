"""Stages as tasks of a Prefect flow run: states, arrows, retries of what was lost. Where a stage runs is the routing's choice."""

import threading
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from components.errors import BallastError
from components.run_params import HERE
from flows.child_process import StoppedError
from flows.dvc_graph import Outcome, Stage
from flows.dvc_stage import run_stage
from flows.lock_entries import is_current
from flows.routed_stage import run_in_pool
from flows.routing import Routing
from flows.run_artifacts import Progress, artifact_key, best_effort, publish_stage


class TrackedRunner:
    """Runs each stage as a task of the flow run, below the tasks of its parents: a `RunStage`, called in several threads."""

    def __init__(self, root: Path, lock: int, run_id: str, routing: Routing, stopping: threading.Event) -> None:
        self.root, self.lock, self.run_id, self.routing, self.stopping = root, lock, run_id, routing, stopping
        self.states: dict[str, State[Any]] = {}
        self.asking = threading.Lock()

    def __call__(self, stage: Stage, is_settled: bool) -> Outcome:
        outcomes: list[Outcome] = []

        def may_retry(*_: object) -> bool:
            return bool(outcomes) and outcomes[-1].is_transient and not self.stopping.is_set()

        @task(
            name=stage.name,
            task_run_name=stage.address,
            cache_policy=NO_CACHE,  # DVC is the only cache
            persist_result=False,
            retries=self.routing.params.num_retries,
            retry_delay_seconds=self.routing.params.retry_delay_seconds,
            retry_condition_fn=may_retry,
        )
        def run_task() -> State[None]:
            try:
                outcomes.append(self.run(stage, is_settled))
            except StoppedError:
                return Cancelled(message="stopped with the pipeline")
            except BallastError as error:
                outcomes.append(Outcome(stage.address, "failed", message=str(error)))
            return describe_state(outcomes[-1])

        parents = [self.states[parent] for parent in stage.parents]  # for the arrows in the UI; the order is ours
        state = self.states[stage.address] = run_task(wait_for=parents, return_state=True)
        return outcomes[-1] if outcomes else Outcome(stage.address, "failed", message=f"{state.name}: {state.message}")

    def run(self, stage: Stage, is_settled: bool) -> Outcome:
        logger = get_run_logger()
        pool = HERE if is_settled else self.routing.pool_of(stage)
        if pool != HERE and self.is_up_to_date(stage):
            return Outcome(stage.address, "cached", message="nothing it depends on has changed")
        if pool != HERE:
            return run_in_pool(stage, pool, self.routing, self.root, self.run_id, logger.info, self.stopping)
        progress = Progress(artifact_key("progress", stage.address), logger.warning)

        def say(line: str) -> None:
            logger.info(line)
            progress.see(line)

        outcome = run_stage(stage, is_settled, say, [self.lock], self.stopping)
        if outcome.state == "ran":
            progress.finish()
            with best_effort(logger.warning):
                publish_stage(outcome, self.root)
        return outcome

    def is_up_to_date(self, stage: Stage) -> bool:
        """As DVC sees it now that its parents are done: what has not changed need not wait for a worker."""
        with self.asking:  # DVC's lock is one per process
            return is_current(self.root, stage.address)


def describe_state(outcome: Outcome) -> State[None]:
    """The run's last state, as the UI shows it: a stage that DVC has skipped is `Cached`."""
    if outcome.state == "cached":
        return Completed(name="Cached", message=outcome.message)
    if outcome.state == "failed":
        return Failed(message=outcome.message)
    return Completed(message=f"ran for {outcome.seconds} s")
