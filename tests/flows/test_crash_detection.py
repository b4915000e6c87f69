"""Laws of the sweep after a server's start: what nobody has been heard of since has an end."""

import json
import os
import subprocess
import sys

import pytest

from tests.flows.toy_pipeline import ROOT

CODE = """
import json
from datetime import UTC, datetime, timedelta
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Running
from flows.crash_detection import sweep

@flow
def silent(): ...

with get_client(sync_client=True) as client:
    runs = [client.create_flow_run(silent) for _ in range(3)]
    for run in runs[:2]:
        client.set_flow_run_state(run.id, Running())
    client.set_flow_run_state(runs[1].id, Cancelling())
    swept = sweep(datetime.now(UTC) + timedelta(seconds=1))
    states = [client.read_flow_run(run.id).state_name for run in runs]
    print(json.dumps([states, [run.id in swept for run in runs]]))
"""


@pytest.mark.prefect
def test_a_silent_run_is_crashed_one_that_was_being_cancelled_is_cancelled_and_one_that_waits_stays(api_url: str) -> None:
    environ = {**os.environ, "PREFECT_API_URL": api_url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    states, is_swept = json.loads(done.stdout.splitlines()[-1])
    assert states == ["Crashed", "Cancelled", "Pending"] and is_swept == [True, True, False]


def test_runs_by_hand_are_heard_more_often_than_silence_is_taken_for_death() -> None:
    from flows.crash_detection import SILENCE_SECONDS
    from flows.stage_runner import QUIET

    assert int(QUIET["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) + 15 <= SILENCE_SECONDS
