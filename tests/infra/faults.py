"""The faults: each breaks a training in its middle, asserts what has to follow, and returns what it has measured.

None of them waits for the training's end, so that one training may suffer all of them one after the other (test_faults.py);
benchmarks/faults.py gives each a training of its own.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import psutil

from infra.local_stack.processes import find_marked
from tests.infra.checkout import until
from tests.infra.training_ground import FINAL, LONG, Ground, Training, ask, seconds_until, state_of

NOTICED_SECONDS = 60.0
"""Issue 7: a run whose worker was killed is marked within a minute."""
CANCELLED_SECONDS = 10.0 + 10.0
"""Issue 7: a cancelled run's processes have ended in 10 s; this machine may be busy."""
GONE_SECONDS = 30.0
"""What a stage has for its checkpoint before it is killed; half a second to six seconds are usual."""
PREEMPTION_SECONDS = 30.0
"""From a preempted machine's SIGTERM to its SIGKILL."""
TRAINS_ON_SECONDS = 60.0
AWAY_SECONDS = 10.0
LONG_AWAY_SECONDS = 120.0
HEARTBEATS_SECONDS = 150.0
"""50 s of silence, a server that starts, a busy machine."""


class Measured(NamedTuple):
    fault: str
    noticed: float | None = None
    """Seconds until the state of the stage's run tells; None where nothing is to be told."""
    gone: float | None = None
    """Seconds until the last process of the stage has ended and its GPU is free."""
    kept: int = 0
    """The step of the last whole checkpoint then."""
    states: str = ""
    """Of the stage's run and the pipeline's."""
    remarks: str = ""


def kill_worker(ground: Ground) -> Measured:
    """SIGKILL to the worker alone; its flow process has to end by itself. The pipeline waits for the next worker."""
    training = ground.begin()
    return lose_worker(ground, training, "worker killed -9", find_prefect_worker(ground).kill)


def kill_worker_service(ground: Ground) -> Measured:
    """SIGKILL to the process that `make up` has started, the parent of Prefect's worker."""
    training = ground.begin()
    return lose_worker(ground, training, "worker's parent killed -9", ground.service("worker-gpu").kill)


def terminate_worker(ground: Ground) -> Measured:
    """As `make down` does, and a preempted machine."""
    training = ground.begin()
    return lose_worker(ground, training, "SIGTERM to the worker", ground.service("worker-gpu").terminate)


def lose_worker(ground: Ground, training: Training, fault: str, strike: Callable[[], None]) -> Measured:
    """The stage's run is Crashed, nothing of it is left, and a new worker goes on with it in the same pipeline run."""
    struck = time.time()
    strike()
    noticed, gone = watch(ground, training, "Crashed", NOTICED_SECONDS)
    kept = require_written(ground, struck)
    ground.up()
    ground.wait_for_step_after(kept)
    again = ground.newest_stage()
    assert again["id"] != training.stage and state_of(ground.url, training.pipeline) == "Running"
    return Measured(fault, noticed, gone, kept, "Crashed, Running", f"run {again['run_count']} of the stage goes on")


def kill_flow_process(ground: Ground) -> Measured:
    """As the kernel does when memory is short; the worker lives."""
    training, struck = ground.begin(), time.time()
    training.tree[0].kill()
    noticed, gone = watch(ground, training, "Crashed", NOTICED_SECONDS)
    kept = require_written(ground, struck)
    ground.wait_for_step_after(kept)
    assert ground.newest_stage()["id"] != training.stage
    return Measured("flow process killed -9", noticed, gone, kept, "Crashed, Running", "retried by the same worker")


def kill_training(ground: Ground) -> Measured:
    """The training itself, as the kernel does when memory is short: DVC and the flow process live, and tell."""
    training = ground.begin()
    training.process.kill()
    noticed, gone = watch(ground, training, "Failed", NOTICED_SECONDS)
    kept = ground.last_step()
    ground.wait_for_step_after(kept)
    return Measured("training killed -9", noticed, gone, kept, "Failed, Running", "retried by the same worker")


def cancel_stage(ground: Ground) -> Measured:
    """Through the API, as the button in the UI does; its pipeline ends with it, and says why."""
    training, struck = ground.begin(), time.time()
    ground.cancel(training.stage)
    gone = seconds_until(lambda: not training.is_left(), CANCELLED_SECONDS)
    assert ground.is_gpu_free()
    noticed = gone + seconds_until(lambda: state_of(ground.url, training.stage) == "Cancelled", NOTICED_SECONDS)
    assert until(lambda: state_of(ground.url, training.pipeline) in FINAL, LONG)
    assert "was cancelled" in ask(ground.url, f"flow_runs/{training.pipeline}")["state"]["message"]
    kept = require_written(ground, struck)
    return Measured("stage cancelled", noticed, gone, kept, f"Cancelled, {state_of(ground.url, training.pipeline)}")


def cancel_pipeline(ground: Ground) -> Measured:
    """Its stage on the other worker ends with it."""
    training, struck = ground.begin(), time.time()
    ground.cancel(training.pipeline)
    gone = seconds_until(lambda: not training.is_left(), CANCELLED_SECONDS)
    assert ground.is_gpu_free()
    noticed = gone + seconds_until(lambda: state_of(ground.url, training.pipeline) == "Cancelled", NOTICED_SECONDS)
    assert until(lambda: state_of(ground.url, training.stage) == "Cancelled", NOTICED_SECONDS)
    kept = require_written(ground, struck)
    return Measured("pipeline cancelled", noticed, gone, kept, "Cancelled, Cancelled")


def terminate_prefect(ground: Ground) -> Measured:
    return restart_server(ground, "prefect", signal.SIGTERM)


def kill_prefect(ground: Ground) -> Measured:
    return restart_server(ground, "prefect", signal.SIGKILL)


def prefect_away_for_long(ground: Ground) -> Measured:
    """The training ends while nobody can be told. Its result is in dvc.lock, so that whatever comes next finds it done."""
    training = ground.begin()
    end_service(ground, "prefect", signal.SIGKILL)
    began = time.monotonic()
    time.sleep(LONG_AWAY_SECONDS)
    workers = [ground.service(name).is_running() for name in ("worker-cpu", "worker-gpu")]
    ground.up()
    assert until(lambda: state_of(ground.url, training.stage) in FINAL, HEARTBEATS_SECONDS), ground.explain()
    assert until(lambda: state_of(ground.url, training.pipeline) in FINAL, HEARTBEATS_SECONDS), ground.explain()
    states = f"{state_of(ground.url, training.stage)}, {state_of(ground.url, training.pipeline)}"
    remarks = f"away {time.monotonic() - began:.0f} s, workers alive {workers}"
    return Measured("Prefect server away for minutes, over the training's end", None, None, 0, states, remarks)


def terminate_mlflow(ground: Ground) -> Measured:
    return restart_server(ground, "mlflow", signal.SIGTERM)


def kill_mlflow(ground: Ground) -> Measured:
    return restart_server(ground, "mlflow", signal.SIGKILL)


def restart_server(ground: Ground, name: str, number: signal.Signals) -> Measured:
    """Away for ten seconds and as long as it takes to start again, on the same port: the same process trains on."""
    training = ground.begin()
    began = time.monotonic()
    end_service(ground, name, number)
    before = ground.last_step()
    time.sleep(AWAY_SECONDS)

    def trains_on() -> bool:
        return ground.last_step() > before or not training.process.is_running()

    assert until(trains_on, TRAINS_ON_SECONDS), "it does not train on without the server"
    ground.up()
    away = round(time.monotonic() - began)
    return Measured(
        f"{'Prefect' if name == 'prefect' else 'MLflow'} server, {number.name}",
        None,
        None,
        0,
        "Running, Running",
        f"away {away} s",
    )


def end_service(ground: Ground, name: str, number: signal.Signals) -> None:
    for process in find_marked(ground.state, lambda service: service == name):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    assert until(lambda: not find_marked(ground.state, lambda service: service == name), 30)


def preempt(ground: Ground) -> Measured:
    """SIGTERM to everything of ours at once, servers included, and SIGKILL to what is left after 30 s; a new pipeline goes on."""
    training, struck = ground.begin(), time.time()
    strike_all(ground, signal.SIGTERM)
    gone = seconds_until(lambda: not training.is_left(), PREEMPTION_SECONDS)
    kept = require_written(ground, struck)
    assert ground.is_gpu_free()
    until(lambda: not find_marked(ground.state), PREEMPTION_SECONDS - gone)
    strike_all(ground, signal.SIGKILL)
    assert until(lambda: not find_marked(ground.state), GONE_SECONDS)
    noticed, states = come_back(ground, training)
    return Measured("machine preempted: SIGTERM, SIGKILL after 30 s", noticed, gone, kept, states)


def reboot(ground: Ground) -> Measured:
    """SIGKILL to everything of ours at once, servers included: nobody can write or tell anything."""
    training = ground.begin()
    strike_all(ground, signal.SIGKILL)
    gone = seconds_until(lambda: not find_marked(ground.state), GONE_SECONDS)
    assert ground.is_gpu_free()
    kept = ground.last_step()
    assert kept > 0
    noticed, states = come_back(ground, training)
    return Measured("reboot: all processes gone", noticed, gone, kept, states)


def come_back(ground: Ground, training: Training) -> tuple[float, str]:
    """`up` again: the old runs are marked, at the latest by their silence. Seconds from the end of `up`, and the states."""
    kept = ground.last_step()
    ground.up()
    up_again = datetime.now(UTC)
    ground.pipeline = ""  # the old one calls itself Running, and has the one place that pipeline/cpu has
    ground.begin()
    assert ground.last_step() > kept
    old = (training.stage, training.pipeline)
    assert until(lambda: all(state_of(ground.url, run) in FINAL for run in old), HEARTBEATS_SECONDS)
    states = [ask(ground.url, f"flow_runs/{run}")["state"] for run in old]
    last = max(datetime.fromisoformat(state["timestamp"]) for state in states)
    return max(0.0, round((last - up_again).total_seconds(), 1)), ", ".join(state["name"] for state in states)


# ---- what all of them ask ----


def watch(ground: Ground, training: Training, state: str, limit: float) -> tuple[float, float]:
    """Seconds until the stage's run has that state, and until nothing of it is left."""
    started = time.monotonic()
    noticed = gone = 0.0
    while not (noticed and gone):
        passed = time.monotonic() - started
        assert passed < limit, f"after {passed:.0f} s the run is {state_of(ground.url, training.stage)}, gone {gone}"
        gone = gone or (0.0 if training.is_left() else passed)
        assert gone or passed < GONE_SECONDS, f"left after {passed:.0f} s: {training.tree}"
        noticed = noticed or (passed if state_of(ground.url, training.stage) == state else 0.0)
        time.sleep(0.1)
    assert ground.is_gpu_free()
    return round(noticed, 1), round(gone, 1)


def require_written(ground: Ground, struck: float) -> int:
    """The step of the checkpoint that the stop itself has brought about."""
    assert ground.last_written() >= struck, "no checkpoint since the stop"
    return ground.last_step()


def find_prefect_worker(ground: Ground) -> psutil.Process:
    return next(child for child in ground.service("worker-gpu").children() if "worker" in child.cmdline())


def strike_all(ground: Ground, number: signal.Signals) -> None:
    for process in find_marked(ground.state):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


ALL: list[Callable[[Ground], Measured]] = [
    kill_worker,
    kill_worker_service,
    terminate_worker,
    kill_flow_process,
    kill_training,
    cancel_stage,
    cancel_pipeline,
    terminate_prefect,
    kill_prefect,
    prefect_away_for_long,
    terminate_mlflow,
    kill_mlflow,
    preempt,
    reboot,
]
