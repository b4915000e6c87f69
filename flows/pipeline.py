"""The whole pipeline: DVC's graph, stage by stage, and in Prefect's UI where a server is configured.

    python -m flows.pipeline              # everything
    python -m flows.pipeline compare      # a stage and all it depends on; targets are those of `dvc repro`

With PREFECT_API_URL set it is a flow run `pipeline`, whose tasks are the stages: logs, states, a table of stages, a table of
methods. Without, the same functions run directly, and Prefect is not even imported. DVC alone decides what has to run and keeps
what was made; Prefect caches and stores nothing. A failed stage stops all that depends on it, and nothing else.
"""

import argparse
import http.client
import os
import signal
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from components.errors import BallastError
from components.run_params import HERE
from flows.dvc_graph import Outcome, Stage, find_root, list_names, read_stages
from flows.dvc_stage import run_stage
from flows.pipeline_lock import hold_lock
from flows.prefect_access import access_errors
from flows.routing import read_routing
from flows.schedule import find_settled, is_good, run_stages, summarise
from flows.stage_runner import QUIET
from flows.stale_locks import drop_stale_entries

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import State

SERVER_ANSWER_SECONDS = 5.0

pipeline: "Flow[[list[str] | None, bool], State[None]]"  # made by __getattr__


def __getattr__(name: str) -> Any:
    """`from flows.pipeline import pipeline` makes the flow; importing this module alone imports no Prefect."""
    if name == "pipeline":
        return make_flow()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> NoReturn:
    """Run it as a command; the exit code is 0 only if every stage is up to date in the end."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline", description="Run the DVC graph, in Prefect's UI if there is one."
    )
    parser.add_argument("targets", nargs="*", help="stages, as `dvc repro` takes them; without any: all")
    parser.add_argument("--here", action="store_true", help="run every stage here, whatever params.yaml routes to other pools")
    given = parser.parse_args()
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # an exception, which ends the running stage
    try:
        code = run_tracked(given.targets, given.here) if os.environ.get("PREFECT_API_URL") else run_here(given.targets)
    except BallastError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def run_here(targets: Sequence[str]) -> int:
    """Run the stages in processes of ours, without Prefect."""
    root, stopping = find_root(), threading.Event()
    routing = read_routing(root, here=True)
    with hold_lock(root) as lock:
        drop_stale_entries(root)

        def run(stage: Stage, is_settled: bool) -> Outcome:
            return run_stage(stage, is_settled, print_line, [lock], stopping)

        outcomes = run_stages(read_stages(targets), run, routing, stopping)
    for outcome in outcomes:
        print(f"{outcome.state:11}  {outcome.seconds:8.1f} s  {outcome.stage}")
    sys.stdout.flush()
    if all(is_good(outcome) for outcome in outcomes):
        print(summarise(outcomes))
        return 0
    print(f"error: {summarise(outcomes)}", file=sys.stderr)
    return 1


def run_tracked(targets: Sequence[str], here: bool) -> int:
    """Run them as a flow run of the configured server."""
    url = os.environ["PREFECT_API_URL"]
    require_server(url)
    import httpx  # comes with Prefect

    try:
        with access_errors(url):
            state = make_flow()(list(targets), here, return_state=True)
    except httpx.TransportError as error:
        raise BallastError(
            f"the Prefect server at {url} went away ({error}). What the stages have made is in dvc.lock; the same command goes on"
        ) from error
    if not state.is_completed():
        print(f"error: {state.message}", file=sys.stderr)
    return int(not state.is_completed())


def print_line(line: str) -> None:
    print(line, flush=True)


@cache
def make_flow() -> "Flow[[list[str] | None, bool], State[None]]":
    """The flow `pipeline`. DVC is the only cache, a failed stage would fail again: Prefect keeps no result and does not retry."""
    from prefect import flow

    def pipeline(targets: list[str] | None = None, here: bool = False) -> "State[None]":
        """Run the DVC graph as far as it is not up to date.

        Args:
            targets: Stages, as `dvc repro` takes them, with all they depend on; empty: everything.
            here: Run every stage in this flow run's process group, whatever params.yaml routes to other pools.
        """
        return run_flow(targets or [], here)

    pipeline.__qualname__ = "pipeline"  # what a deployment has to load: flows/pipeline.py:pipeline
    return flow(name="pipeline", persist_result=False, retries=0)(pipeline)


def run_flow(targets: Sequence[str], here: bool) -> "State[None]":
    """The body of the flow: the graph, its stages as tasks, the tables."""
    from prefect import get_run_logger
    from prefect.runtime import flow_run
    from prefect.states import Completed, Failed

    from flows.routed_stage import require_deployments
    from flows.run_artifacts import best_effort, publish_tables
    from flows.tracked_stages import TrackedRunner
    from flows.worker_process import end_with_worker

    end_with_worker()
    logger, stopping = get_run_logger(), threading.Event()
    try:
        root = find_root()
        routing = read_routing(root, here=here)
        with hold_lock(root, str(flow_run.id)) as lock:
            drop_stale_entries(root)
            for name in sorted(set(routing.params.stages) - list_names()):
                logger.warning(f"params.yaml: routing.stages.{name} routes nothing: dvc.yaml has no such stage or cell")
            stages = read_stages(targets)
            pools = {stage.address: routing.pool_of(stage) for stage in stages}
            routed = {pools[stage.address] for stage in stages if stage.address not in find_settled(stages)}
            require_deployments(routed - {HERE})
            runner = TrackedRunner(root, lock, str(flow_run.id), routing, stopping)
            outcomes = run_stages(stages, runner, routing, stopping)
    except BallastError as error:
        return Failed(message=str(error))
    with best_effort(logger.warning):
        publish_tables(outcomes, pools, root)
    summary = summarise(outcomes)
    logger.info(summary)
    return Completed(message=summary) if all(is_good(outcome) for outcome in outcomes) else Failed(message=summary)


def require_server(url: str) -> None:
    """Refuse at once if nothing answers at PREFECT_API_URL: Prefect itself would need a minute, or show a page of traceback.

    In a thread, because nothing else limits the time of a name look-up.
    """
    problems = ["no answer"]
    asking = threading.Thread(target=lambda: problems.__setitem__(0, ask_server(url)), daemon=True)
    asking.start()
    asking.join(SERVER_ANSWER_SECONDS + 1.0)
    if problems[0]:
        raise BallastError(
            f"no Prefect server at PREFECT_API_URL={url} ({problems[0]}). "
            "Start one with `prefect server start`, correct the URL, or unset it to run without Prefect"
        )


def ask_server(url: str) -> str:
    """What is wrong with it, or nothing. A server that wants a password or has its own certificate is one: Prefect knows them."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SERVER_ANSWER_SECONDS) as answer:
            is_page = answer.read(1).startswith(b"<")
        return "a web page answers; the URL of the API ends in /api" if is_page else ""
    except urllib.error.HTTPError as error:
        hint = "; the URL of the API ends in /api" if error.code == 404 else ""
        return "" if error.code in (401, 403) else f"HTTP {error.code}{hint}"
    except urllib.error.URLError as error:
        return "" if isinstance(error.reason, ssl.SSLCertVerificationError) else str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


if __name__ == "__main__":
    main()
