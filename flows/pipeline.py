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
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from components.artifacts import read_json
from components.errors import BallastError
from flows.dvc_graph import Outcome, Stage, find_root, hold_lock, is_good, read_stages, run_stage, run_stages, summarise
from flows.stage_runner import QUIET

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import State

METRICS = Path("artifacts/report/metrics.json")
SERVER_ANSWER_SECONDS = 5.0

pipeline: "Flow[[list[str] | None], State[None]]"  # made by __getattr__


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
    targets = parser.parse_args().targets
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # an exception, which ends the running stage
    try:
        code = run_tracked(targets) if os.environ.get("PREFECT_API_URL") else run_here(targets)
    except BallastError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def run_here(targets: Sequence[str]) -> int:
    """Run the stages in this process, without Prefect."""
    with hold_lock(find_root()) as lock:
        outcomes = run_stages(read_stages(targets), lambda stage, is_settled: run_stage(stage, is_settled, print_line, lock))
    for outcome in outcomes:
        print(f"{outcome.state:11}  {outcome.seconds:8.1f} s  {outcome.stage}")
    sys.stdout.flush()
    if all(is_good(outcome) for outcome in outcomes):
        print(summarise(outcomes))
        return 0
    print(f"error: {summarise(outcomes)}", file=sys.stderr)
    return 1


def run_tracked(targets: Sequence[str]) -> int:
    """Run them as a flow run of the configured server."""
    url = os.environ["PREFECT_API_URL"]
    require_server(url)
    import httpx  # comes with Prefect

    try:
        state = make_flow()(list(targets), return_state=True)
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
def make_flow() -> "Flow[[list[str] | None], State[None]]":
    """The flow `pipeline`. DVC is the only cache, a failed stage would fail again: Prefect keeps no result and does not retry."""
    from prefect import flow, get_run_logger
    from prefect.states import Completed, Failed

    def pipeline(targets: list[str] | None = None) -> "State[None]":
        """Run the DVC graph: the targets (default: all) and what they depend on, as far as it is not up to date."""
        logger = get_run_logger()
        try:
            root = find_root()
            with hold_lock(root) as lock:
                outcomes = run_stages(read_stages(targets or []), TrackedRunner(lock))
            publish_tables(outcomes, root)
        except BallastError as error:
            return Failed(message=str(error))
        summary = summarise(outcomes)
        logger.info(summary)
        return Completed(message=summary) if all(is_good(outcome) for outcome in outcomes) else Failed(message=summary)

    pipeline.__qualname__ = "pipeline"  # what a deployment has to load: flows/pipeline.py:pipeline
    return flow(name="pipeline", persist_result=False, retries=0)(pipeline)


class TrackedRunner:
    """Runs each stage as a task of the flow run, below the tasks of its parents. It is a `RunStage`."""

    def __init__(self, lock: int) -> None:
        self.lock = lock
        self.states: dict[str, State[Any]] = {}

    def __call__(self, stage: Stage, is_settled: bool) -> Outcome:
        from prefect import get_run_logger, task
        from prefect.cache_policies import NO_CACHE

        outcomes: list[Outcome] = []

        @task(name=stage.name, task_run_name=stage.address, cache_policy=NO_CACHE, persist_result=False, retries=0)
        def run_task() -> "State[None]":
            outcomes.append(run_stage(stage, is_settled, get_run_logger().info, self.lock))
            return describe_state(outcomes[0])

        parents = [self.states[parent] for parent in stage.parents]  # for the arrows in the UI; the order is ours
        state = self.states[stage.address] = run_task(wait_for=parents, return_state=True)
        return outcomes[0] if outcomes else Outcome(stage.address, "failed", message=f"{state.name}: {state.message}")


def describe_state(outcome: Outcome) -> "State[None]":
    """The task's last state, as the UI shows it: a stage that DVC has skipped is `Cached`."""
    from prefect.states import Completed, Failed

    if outcome.state == "cached":
        return Completed(name="Cached", message=outcome.message)
    if outcome.state == "failed":
        return Failed(message=outcome.message)
    return Completed(message=f"ran for {outcome.seconds} s")


def publish_tables(outcomes: Sequence[Outcome], root: Path) -> None:
    """The flow run's artifacts: `stages`, and `methods` where `compare` has made or confirmed its figures."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    rows = [{**outcome._asdict(), "message": outcome.message.partition("\n")[0]} for outcome in outcomes]
    create_table_artifact(rows, key="stages", description=summarise(outcomes).partition("\n")[0])
    is_compared = any(outcome.stage == "compare" and is_good(outcome) for outcome in outcomes)
    if is_compared and (root / METRICS).exists():
        table = render_methods(read_json(root / METRICS, made_by="compare"))
        create_markdown_artifact(table, key="methods", description=f"{METRICS}: means over the seeds")


def render_methods(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """A row per metric (there are many) and a column per method, in Markdown; the gate is no method."""
    metrics = {name: values for name, values in metrics.items() if name != "gate"}
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    cells = {name: [f"{values[name]:.4g}" if name in values else "" for values in metrics.values()] for name in names}
    head = [["metric", *metrics], ["---", *("---:" for _ in metrics)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *([name, *row] for name, row in cells.items())])


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
