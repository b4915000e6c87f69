"""Runs whose processes are all gone are marked Crashed: by an automation while the server is up, by a sweep after its start.

    python -m flows.crash_detection --since 2026-11-28T17:00:00+00:00     # the sweep; `make up` starts it after the server

A flow run sends a heartbeat every 30 s, the least that Prefect allows. Of a killed flow process its worker tells within a second;
heartbeats are for when nobody is left to tell: a power cut, a lost machine. While the server itself is down it hears nobody,
and would take every run for dead when it comes back: so the automation is paused before its start (infra/local_stack), and the
sweep marks those that have not been heard since, and switches it on again.
"""

import argparse
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from components.errors import BallastError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.events.schemas.automations import AutomationCore

NAME = "ballast: mark runs without a heartbeat as crashed"
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
HEARTBEAT_SECONDS = 30
"""PREFECT_FLOWS_HEARTBEAT_FREQUENCY in infra/prefect/work_pools; Prefect raises anything less to this."""
SILENCE_SECONDS = 50
"""A heartbeat may be late by 20 s; and with 5 s between two looks of the server's, a dead run is marked within 55 s."""
MESSAGE = f"No heartbeat for {SILENCE_SECONDS} s: the worker and the run's processes are gone. What the stages have made is kept."


def apply_automation(client: "SyncPrefectClient", resume: bool = False) -> None:
    """Create or update it by its name; one that is paused stays so without `resume`."""
    known = client.read_automations_by_name(NAME)
    if not known:
        client.create_automation(describe_automation())
        return
    client.update_automation(known[0].id, describe_automation(enabled=known[0].enabled or resume))
    for double in known[1:]:
        client.delete_automation(double.id)


def describe_automation(enabled: bool = True) -> "AutomationCore":
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    trigger = EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *(f"prefect.flow-run.{state}" for state in ENDS)},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_SECONDS),
    )
    description = f"Flow runs send a heartbeat every {HEARTBEAT_SECONDS} s. docs/deployments.md"
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=MESSAGE)
    return AutomationCore(name=NAME, description=description, enabled=enabled, trigger=trigger, actions=[action])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.crash_detection", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--since", required=True, help="when the server was started, ISO 8601 with its time zone")
    since = datetime.fromisoformat(parser.parse_args().since)
    if not os.environ.get("PREFECT_API_URL"):
        sys.exit("error: PREFECT_API_URL is not set")
    time.sleep(max(0.0, (since + timedelta(seconds=SILENCE_SECONDS) - datetime.now(UTC)).total_seconds()))
    try:
        crashed = sweep(since)
    except BallastError as error:
        sys.exit(f"error: {error}")
    print(f"marked {len(crashed)} runs as crashed: {', '.join(str(run) for run in crashed) or 'all that run are heard'}")


def sweep(since: datetime) -> list[UUID]:
    """Mark the runs that began before `since` and were not heard after it; their ids. Call it SILENCE_SECONDS after `since`."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled, Crashed

    with get_client(sync_client=True) as client:
        silent = [run for run in read_running(client) if is_older(run, since) and not is_heard(client, run.id, since)]
        for run in silent:  # the server lets one that is being cancelled end in no other way
            is_cancelling = run.state is not None and run.state.is_cancelling()
            client.set_flow_run_state(run.id, (Cancelled if is_cancelling else Crashed)(message=MESSAGE))
        apply_automation(client, resume=True)
        return [run.id for run in silent]


def read_running(client: "SyncPrefectClient") -> "list[FlowRun]":
    """Every flow run that says of itself that it runs."""
    from prefect.client.schemas.filters import FlowRunFilter

    running = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}})
    runs: list[FlowRun] = []
    while part := client.read_flow_runs(flow_run_filter=running, limit=200, offset=len(runs)):
        runs += part
    return runs


def is_older(run: "FlowRun", since: datetime) -> bool:
    return run.start_time is None or run.start_time < since


def is_heard(client: "SyncPrefectClient", run_id: UUID, since: datetime) -> bool:
    """Whether the server knows a heartbeat of the run's that was sent after `since`."""
    wanted = {
        "occurred": {"since": since.isoformat(), "until": datetime.now(UTC).isoformat()},
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{run_id}"]},
    }
    answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
    return bool(answer.json()["events"])


if __name__ == "__main__":
    main()
