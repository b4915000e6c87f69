"""Prefect flow `stage`: one stage of the graph on a worker. Deployed once per work pool (flows/deployments.py).

The pipeline sends its routed stages here; anybody can run one from Prefect's UI by its address (`post_train@sft-0`). On the
pipeline's disk it is `dvc repro --single-item` there. With `work`, which the pipeline makes for a pool without a shared disk,
the worker's clone takes commit and data from the remotes, and gives its result back the same way.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Failed

from components.errors import BallastError
from flows.child_process import StoppedError
from flows.dvc_graph import Outcome, find_root, find_stage
from flows.dvc_stage import run_stage
from flows.gpu_lease import hold_gpus
from flows.pipeline_lock import hold_lock, share_lock
from flows.remote_work import do_work
from flows.routed_stage import leave_result
from flows.routing import read_routing
from flows.run_artifacts import Progress, artifact_key, best_effort, publish_stage
from flows.schedule import is_good
from flows.stage_runner import QUIET
from flows.stale_locks import drop_stale_entries
from flows.tracked_stages import describe_state
from flows.worker_process import end_with_worker


@flow(name="stage", persist_result=False, retries=0)
def stage(address: str, pipeline_run: str | None = None, work: dict[str, Any] | None = None, num_gpus: int = 1) -> State[None]:
    """Run one stage where this worker is.

    Args:
        address: The stage as `dvc repro` takes it, for example `post_train@sft-0`.
        pipeline_run: The flow run of the pipeline that sends it; leave it empty.
        work: What a worker in a clone of its own needs; made by the pipeline, leave it empty.
        num_gpus: GPUs that a stage in a clone of its own works on.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    end_with_worker()
    logger, progress = get_run_logger(), Progress(artifact_key("progress", address), get_run_logger().warning)

    def say(line: str) -> None:
        logger.info(line)
        progress.see(line)

    try:
        root = find_root()
        outcome = _run_here(root, address, pipeline_run, say) if work is None else _run_remote(root, address, work, num_gpus, say)
    except BallastError as error:
        return Failed(message=str(error))
    except StoppedError:
        return Cancelled(message="stopped")
    if is_good(outcome):
        progress.finish()
    with best_effort(logger.warning):
        publish_stage(outcome, root)
    return describe_state(outcome)


def _run_here(root: Path, address: str, pipeline_run: str | None, say: Callable[[str], None]) -> Outcome:
    """In this checkout: below the lock of the pipeline that sends it, or, started alone, under a lock of its own."""
    stage = find_stage(address)
    if pipeline_run:
        with share_lock(root, pipeline_run) as lock:
            return run_stage(stage, False, say, [lock])
    refuse_without_shared_disk(root, address)
    with hold_lock(root, str(flow_run.id)) as lock:
        drop_stale_entries(root)
        return run_stage(stage, False, say, [lock])


def refuse_without_shared_disk(root: Path, address: str) -> None:
    """By hand, in a pool whose workers have clones of their own: the data would be missing, and the result would stay there."""
    pool, routing = str(deployment.name), read_routing(root)
    if pool in routing.params.pools and routing.is_remote(pool):
        raise BallastError(
            f"the pool {pool} does not share the disk: a stage that is started there by hand gets no data, and its result goes "
            f"nowhere. Let the pipeline send it: prefect deployment run pipeline/cpu --param 'targets=[\"{address}\"]'"
        )


def _run_remote(root: Path, address: str, work: dict[str, Any], num_gpus: int, say: Callable[[str], None]) -> Outcome:
    with hold_gpus(num_gpus, say) as lease:
        os.environ.update(lease.environ)
        outcome, result = do_work(root, address, work, say, lease.held_files)
    if result is not None:
        leave_result(result)
    return outcome
