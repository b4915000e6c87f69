"""A stage on a worker of another work pool: a flow run of `stage/<pool>` below the pipeline's, followed to its end.

A pool with a shared disk works in the pipeline's checkout. A remote one has clones: what the stage needs goes through the DVC
remote, and its result comes back the same way (flows/remote_exchange.py).
"""

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling

from components.errors import BallastError
from flows.child_process import StoppedError
from flows.dvc_graph import Outcome, Stage
from flows.dvc_stage import is_transient
from flows.remote_exchange import send_work
from flows.remote_result import take_result
from flows.routing import Routing, num_gpus

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 600.0
"""How long a server may be away before the pipeline gives up on a stage that runs elsewhere."""
CANCEL_SECONDS = 25.0
UNSTARTED_TOLD_AFTER_SECONDS = 30.0
RESULT_KEY = "stage-result"


def run_in_pool(
    stage: Stage, pool: str, routing: Routing, root: Path, run_id: str, say: Callable[[str], None], stopping: threading.Event
) -> Outcome:
    """Send it, wait, take its result; `run_id`: the pipeline's flow run."""
    started = time.perf_counter()
    is_remote = routing.is_remote(pool)
    parameters: dict[str, Any] = {"address": stage.address, "pipeline_run": run_id, "num_gpus": num_gpus(stage, root)}
    if is_remote:
        parameters["work"] = send_work(root, stage.address, say, stopping)
    flow_run: Any = run_deployment(f"stage/{pool}", parameters=parameters, flow_run_name=stage.address, timeout=0)
    say(f"{stage.address} is flow run {flow_run.id} ({flow_run.name}) of the pool {pool}")
    flow_run = follow(flow_run.id, pool, say, stopping)
    outcome = read_outcome(stage, pool, flow_run)
    if is_remote and outcome.state in ("ran", "cached"):
        taken = take_result(root, stage.address, read_result(flow_run.id), say, stopping)
        outcome = outcome if taken.state in ("ran", "cached") else taken
    return outcome._replace(seconds=round(time.perf_counter() - started, 1))


def require_deployments(pools: set[str]) -> None:
    """Refuse before anything runs if the server does not have the pools that params.yaml routes to."""
    with get_client(sync_client=True) as client:
        for pool in sorted(pools):
            try:
                client.read_deployment_by_name(f"stage/{pool}")
            except ObjectNotFound:
                raise BallastError(
                    f"params.yaml routes stages to the work pool {pool}, and the Prefect server has no deployment stage/{pool}. "
                    "Make pools, deployments and workers with `make up` (`python -m flows.deployments` on a server of yours), "
                    "or run every stage here: python -m flows.pipeline --here"
                ) from None


def follow(flow_run_id: UUID, pool: str, say: Callable[[str], None], stopping: threading.Event) -> "FlowRun":
    """Poll until it ends. A server that is away is waited for; when we have to stop, the flow run is cancelled first."""
    begun = answered = time.monotonic()
    is_told = False
    with get_client(sync_client=True) as client:
        while True:
            if stopping.wait(POLL_SECONDS):
                cancel(client, flow_run_id)
                raise StoppedError
            try:
                flow_run = client.read_flow_run(flow_run_id)
                answered = time.monotonic()
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise BallastError(f"the Prefect server has been away for {PATIENCE_SECONDS:.0f} s: {error}") from error
                continue
            if flow_run.state is not None and flow_run.state.is_final():
                return flow_run
            if not is_told and flow_run.start_time is None and time.monotonic() - begun > UNSTARTED_TOLD_AFTER_SECONDS:
                is_told = True
                say(f"still {flow_run.state_name}: is a worker of {pool} running and free? `make worker POOL={pool}` starts one")


def cancel(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    """And wait a while for its end: its worker ends the stage, which keeps a checkpoint."""
    end = time.monotonic() + CANCEL_SECONDS
    try:
        has_begun = client.read_flow_run(flow_run_id).start_time is not None
        client.set_flow_run_state(flow_run_id, Cancelling() if has_begun else Cancelled())
        while time.monotonic() < end:
            state = client.read_flow_run(flow_run_id).state
            if state is not None and state.is_final():
                return
            time.sleep(0.5)
    except (httpx.TransportError, PrefectHTTPStatusError):
        return  # without a server nobody can be told; the worker's next answer from it ends the stage


def read_outcome(stage: Stage, pool: str, flow_run: "FlowRun") -> Outcome:
    """What became of the stage, from the last state of its flow run."""
    state = flow_run.state
    assert state is not None, "it has ended"
    message = state.message or ""
    if state.is_completed():
        return Outcome(stage.address, "cached" if state.name == "Cached" else "ran", message=message)
    if state.is_crashed():
        return Outcome(stage.address, "failed", message=f"lost in the pool {pool}: {message}", is_transient=True)
    if state.is_cancelled() or state.is_cancelling():
        return Outcome(stage.address, "failed", message=f"its flow run in the pool {pool} was cancelled")
    return Outcome(stage.address, "failed", message=message, is_transient=is_transient(message))


def read_result(flow_run_id: UUID) -> dict[str, Any]:
    """What the worker has left for us: an artifact that holds JSON in a code block."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]), key=ArtifactFilterKey(any_=[RESULT_KEY])
            )
        )
    text = re.search(r"```json\n(.*)\n```", str(found[-1].data), re.DOTALL) if found else None
    if text is None:
        raise BallastError(f"flow run {flow_run_id} has ended well and left no {RESULT_KEY}; run the pipeline again")
    result: dict[str, Any] = json.loads(text[1])
    return result


def leave_result(result: dict[str, Any]) -> None:
    """On the worker: see `read_result`."""
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(f"```json\n{json.dumps(result)}\n```", key=RESULT_KEY, description="the stage's entry of dvc.lock")
