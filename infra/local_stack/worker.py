"""A Prefect worker that ends as a machine should: its flow runs first, with time for a checkpoint, then itself.

    python -m infra.local_stack.worker --pool gpu --limit 1      # arguments of `prefect worker start`

Prefect's worker alone, told to stop (SIGTERM: `make down`, systemd, a preempted machine), kills its flow processes within 0.1 s,
and their runs stay `Running` on the server. So this parent gets the signal in its place, passes it on to the flow processes,
waits until they have written what they have to and told the server, and only then lets the worker go. Killed itself, it takes
the worker along.
"""

import ctypes
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

FLOW_GRACE_SECONDS = 60.0
"""A flow run gives its stage 30 s (flows.child_process) and tells the server then."""
WORKER_GRACE_SECONDS = 20.0
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1


def main() -> None:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    command = [sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]
    worker = subprocess.Popen(command, preexec_fn=_die_with_parent)
    while worker.poll() is None and not asked:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(POLL_SECONDS)
    if asked:
        end_flow_runs(worker)
        end_worker(worker)
        sys.exit(128 + asked[0])
    code = worker.returncode
    sys.exit(code if code >= 0 else 128 - code)


def _die_with_parent() -> None:
    """SIGKILL: at a SIGTERM it would kill its flow processes before they could tell the server, and they see that it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def end_flow_runs(worker: subprocess.Popen[bytes]) -> None:
    """SIGTERM to every flow process once, and wait for them; the worker stays, for it tells the server of those that crash."""
    told: set[int] = set()
    give_up = time.monotonic() + FLOW_GRACE_SECONDS
    while time.monotonic() < give_up and (running := find_flow_processes(worker.pid)):
        for process in running:
            if process.pid not in told:
                told.add(process.pid)
                print(f"telling the flow process {process.pid} to stop", flush=True)
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
        time.sleep(POLL_SECONDS)
    if told:
        time.sleep(2 * POLL_SECONDS)  # for the worker's own last words to the server


def find_flow_processes(worker_pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(worker_pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    return []


def end_worker(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(WORKER_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


if __name__ == "__main__":
    main()
