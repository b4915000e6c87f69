"""What can be started on the Prefect server, and where it then runs: applies work pools, deployments and crash detection.

    python -m flows.deployments       # to the server at PREFECT_API_URL; as often as you like

A deployment is flow/where: `pipeline/cpu`, `promote/cpu`, `rollback/cpu`, and `stage/<pool>` for every work pool. Its entry point
is a module (`flows.pipeline.pipeline`), and a worker imports it in the folder in which it was started: every machine runs the
code of its own checkout, wherever it lies. docs/deployments.md.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from components.errors import BallastError, ParamsError
from components.params import load_params
from components.run_params import HERE, RoutingParams
from flows.crash_detection import apply_automation
from flows.pipeline import require_server
from flows.stage_runner import QUIET
from flows.work_pools import Pool, apply_pools, read_pools

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate

HOME_POOL = "cpu"
"""Where the pipeline itself and the acts on the registry run."""
NIGHTLY = "0 2 * * *"
"""UTC. Shipped switched off; the server keeps what people make of it."""
GPU_START_SECONDS = 600
"""How long a slot waits for its flow run to come up: a container's image may have to be pulled."""


class Deployment(NamedTuple):
    entrypoint: str
    """Module and flow. A worker imports it in its own folder."""
    pool: str
    description: str
    tags: tuple[str, ...]
    limit: int | None = None
    """Runs at once; more are queued."""
    cron: str = ""

    @property
    def flow_name(self) -> str:
        return self.entrypoint.rpartition(".")[2]


def main() -> None:
    """Apply everything; the exit code is 0 only if the server has all of it."""
    argparse.ArgumentParser(prog="python -m flows.deployments", description=(__doc__ or "").partition("\n")[0]).parse_args()
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
        url = require_url()
        pools = read_pools()
        deployments = list_deployments([pool.name for pool in pools], load_params().routing)
        apply(pools, deployments)
    except BallastError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    names = ", ".join(f"{deployment.flow_name}/{deployment.pool}" for deployment in deployments)
    print(f"{url} has the pools {', '.join(pool.name for pool in pools)} and the deployments {names}")


def require_url() -> str:
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        raise BallastError("PREFECT_API_URL is not set; `make up` starts a server here and prints the line to set it")
    require_server(url)
    return url


def list_deployments(pools: Sequence[str], routing: RoutingParams) -> list[Deployment]:
    """All of them. A routed stage whose pool has no file is a mistake that would only be seen when the stage's turn has come."""
    missing = {HOME_POOL, *(pool for pool in routing.stages.values() if pool != HERE)} - set(pools)
    if missing:
        raise ParamsError(
            f"work pool {', '.join(sorted(missing))}: params.yaml routes stages there or the pipeline runs there, "
            f"and infra/prefect/work_pools has only {', '.join(pools)}. Add its file there, or correct routing.stages"
        )
    registry = ("ballast", "registry")
    return [
        Deployment(
            "flows.pipeline.pipeline",
            HOME_POOL,
            "Every stage that is out of date, in the order of dvc.yaml.",
            ("ballast",),
            1,
            NIGHTLY,
        ),
        *(describe_stage(pool, routing) for pool in pools),
        Deployment("flows.registry_flows.promote", HOME_POOL, "Make a registered version the champion.", registry),
        Deployment("flows.registry_flows.rollback", HOME_POOL, "Back to the champion before this one.", registry),
    ]


def describe_stage(pool: str, routing: RoutingParams) -> Deployment:
    """One job per GPU: as many at once as the pool has GPUs, which params.yaml tells (routing.pools.<pool>.num_at_once)."""
    is_gpu = "gpu" in pool.split("-")
    limit = routing.pools[pool].num_at_once if pool in routing.pools else 1
    tags = ("ballast", "stage", *(("gpu",) if is_gpu else ()))
    where = "on a GPU, one job per GPU" if is_gpu else "without a GPU"
    return Deployment("flows.stage.stage", pool, f"One stage of dvc.yaml, {where}, in a worker of the pool {pool}.", tags, limit)


def apply(pools: Sequence[Pool], deployments: Sequence[Deployment]) -> None:
    """Create what is missing and update the rest: pools first, for a deployment needs its own."""
    from prefect.client.orchestration import get_client

    with server_errors(), get_client(sync_client=True) as client:
        apply_pools(client, pools)
        for deployment in deployments:
            apply_deployment(client, deployment)
        apply_automation(client)


def apply_deployment(client: "SyncPrefectClient", deployment: Deployment) -> None:
    """The server's own upsert: same flow and name, same deployment, and its runs stay."""
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.utilities.callables import parameter_schema

    flow = import_flow(deployment.entrypoint)
    options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE, grace_period_seconds=GPU_START_SECONDS)
    client.create_deployment(
        flow_id=client.create_flow(flow),
        name=deployment.pool,
        entrypoint=deployment.entrypoint,
        description=deployment.description,
        tags=list(deployment.tags),
        work_pool_name=deployment.pool,
        parameter_openapi_schema=parameter_schema(flow.fn).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        schedules=choose_schedules(client, deployment),
        concurrency_limit=deployment.limit,
        concurrency_options=options if deployment.limit else None,
    )


def import_flow(entrypoint: str) -> "Flow[..., Any]":
    from prefect.utilities.importtools import import_object

    flow: Flow[..., Any] = import_object(entrypoint)
    return flow


def choose_schedules(client: "SyncPrefectClient", deployment: Deployment) -> "list[DeploymentScheduleCreate]":
    """Those that the server has: people switch and change them in its UI. A new deployment gets ours, switched off."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.exceptions import ObjectNotFound

    try:
        known = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.pool}").schedules
    except ObjectNotFound:
        if not deployment.cron:
            return []
        return [
            DeploymentScheduleCreate(schedule=CronSchedule(cron=deployment.cron, timezone="UTC"), active=False, slug="nightly")
        ]
    kept = ("schedule", "active", "max_scheduled_runs", "parameters", "slug")
    return [DeploymentScheduleCreate(**{name: getattr(schedule, name) for name in kept}) for schedule in known]


@contextmanager
def server_errors() -> Iterator[None]:
    """What the server's client raises, told as ours."""
    import httpx
    from prefect.exceptions import PrefectException

    url = os.environ["PREFECT_API_URL"]
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "set PREFECT_API_AUTH_STRING to the server's (docs/security.md)" if status in (401, 403) else "see its log"
        reason = str(error).partition("\n")[0]
        raise BallastError(f"the Prefect server at {url} refuses ({reason}); {hint}") from error


if __name__ == "__main__":
    main()
