"""A copy of the project to break things in: all is made up to one training; Prefect, MLflow and workers are its own."""

import fcntl
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
import yaml

from components.artifacts import ROOT, fingerprint_file
from components.training.checkpoints import is_sealed
from infra.local_stack.processes import find_marked
from tests.infra import checkout
from tests.infra.checkout import Checkout, until
from tests.prefect_server import free_port

CELL = "post_train@uncertainty_aware-0"
NAME = CELL.partition("@")[2]
COPIED = ("components", "flows", "infra", "inputs", "dvc.yaml", "params.yaml", ".dvc/config", ".dvcignore", ".gitignore")
FINAL = {"Completed", "Failed", "Cancelled", "Crashed"}
LONG = 240.0
"""Seconds until something happens that only has to happen: three Python processes one below the other, on a busy machine."""


def ask(url: str, path: str, body: Any = None) -> Any:
    """As often as a server wants that is busy, or has only just come back: Prefect's own client does no other."""
    end = time.monotonic() + 60
    while True:
        try:
            return checkout.ask(url, path, body)
        except OSError as error:  # urllib's errors are of this kind
            if time.monotonic() > end or getattr(error, "code", 503) != 503:
                raise
            time.sleep(1)


def start_run(url: str, deployment: str, **parameters: Any) -> str:
    """A flow run of the deployment, as the button in the UI makes it; its id."""
    found = ask(url, f"deployments/name/{deployment}")["id"]
    body = {"parameters": parameters, "idempotency_key": str(uuid4())}  # asked twice, one run
    return str(ask(url, f"deployments/{found}/create_flow_run", body)["id"])


def state_of(url: str, run: str) -> str:
    return str(ask(url, f"flow_runs/{run}")["state"]["name"])


class Training(NamedTuple):
    """One that is in its middle, with a checkpoint behind it."""

    pipeline: str
    """The flow run of the pipeline; `stage` is the one below it."""
    stage: str
    process: psutil.Process
    tree: list[psutil.Process]
    """The flow process of the stage and all below it: psutil knows a process by pid and start time."""

    def is_left(self) -> bool:
        return any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in self.tree)


class Ground(Checkout):
    def __init__(self, root: Path, num_steps: int = 400) -> None:
        self.root = root
        self.state = root / ".work" / "stack" / socket.gethostname()
        self.gpu = f"GPU-of-test-{os.getpid()}"  # a lease that no other test waits for
        self.ports = {"BALLAST_PREFECT_PORT": str(free_port()), "BALLAST_MLFLOW_PORT": str(free_port())}
        self.url = f"http://127.0.0.1:{self.ports['BALLAST_PREFECT_PORT']}/api"
        self.pipeline = ""
        for name in COPIED:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / name, root / name)
        (root / "mlruns").mkdir()
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        params = yaml.safe_load((root / "params.yaml").read_text())
        shrink(params, num_steps)
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def make_reference(self) -> None:
        """Everything up to the training, and once the training itself, undisturbed; then as if it had never been."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, "-m", "dvc", "repro", CELL]
        done = subprocess.run(command, cwd=self.root, env=self.environ(PATH=path), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        self.reference = self.result()
        self.forget()

    def result(self) -> tuple[str, dict[Any, Any]]:
        """What a training leaves: its weights, byte for byte, and its points in MLflow."""
        return fingerprint_file(self.root / "artifacts/models" / NAME / "model.safetensors"), self.points()

    def points(self) -> dict[tuple[str, int], list[float]]:
        """Of the newest run: (metric, step) → values, in their order. What the machine was doing meanwhile is no point of it."""
        newest = "select run_uuid from runs where name = ? order by start_time desc limit 1"
        wanted = f"select key, step, value from metrics where run_uuid = ({newest}) and key not like 'system/%' order by rowid"
        found: dict[tuple[str, int], list[float]] = {}
        with closing(sqlite3.connect(f"file:{self.root / 'mlruns/mlflow.db'}?mode=ro", uri=True)) as database:
            for key, step, value in database.execute(wanted, [NAME]):
                found.setdefault((key, step), []).append(value)
        return found

    def forget(self) -> None:
        """Undo the training, also in DVC's run cache, which would give it back at once."""
        lock = yaml.safe_load((self.root / "dvc.lock").read_text())
        lock["stages"].pop(CELL, None)
        (self.root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
        for folder in (
            f"artifacts/models/{NAME}",
            ".dvc/cache/runs",
            ".work/post_train",
            ".work/mlflow_runs",
            ".work/unsent_metrics",
        ):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for file in (f"curves/{NAME}.csv", f"probes/{NAME}.json", f"costs/post_train-{NAME}.json"):
            (self.root / "artifacts" / file).unlink(missing_ok=True)

    # ---- the stack ----

    def up(self) -> None:
        done = self.run("infra.local_stack", "up", CUDA_VISIBLE_DEVICES=self.gpu, **self.ports)
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        """And everything of it, whatever has become of it."""
        try:
            self.run("infra.local_stack", "down")
        finally:
            for process in find_marked(self.state):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.lease_file().unlink(missing_ok=True)

    def service(self, name: str) -> psutil.Process:
        return psutil.Process(json.loads((self.state / f"{name}.json").read_text())["pid"])

    def lease_file(self) -> Path:
        return Path(tempfile.gettempdir()) / f"ballast-{os.getuid()}" / "gpus" / self.gpu

    def is_gpu_free(self) -> bool:
        with self.lease_file().open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    # ---- the training ----

    def begin(self) -> Training:
        """A training that has written a checkpoint of its own; one that runs already, or a new run of `pipeline/cpu`."""
        before = self.last_step()
        if not self.pipeline or state_of(self.url, self.pipeline) in FINAL:
            self.pipeline = start_run(self.url, "pipeline/cpu", targets=[CELL])
        self.wait_for_step_after(before)
        [process] = self.find_trainings()
        stage = self.newest_stage()
        flow = next(parent for parent in process.parents() if "prefect.engine" in parent.cmdline())
        return Training(self.pipeline, stage["id"], process, [flow, *flow.children(recursive=True)])

    def wait_for_step_after(self, before: int) -> None:
        """Until the next checkpoint is there. The first new one comes after the old ones: nothing is done twice."""
        known = set(self.steps())
        assert until(lambda: self.find_trainings() and set(self.steps()) - known, LONG), self.explain()
        first = min(set(self.steps()) - known)
        assert first > before, f"begun again: a checkpoint of step {first}, although step {before} was kept"

    def find_trainings(self) -> list[psutil.Process]:
        return find_marked_command(self.state, "flows.post_train")

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint."""
        folders = (self.root / ".work" / "post_train").glob(f"{NAME}-*/checkpoint-*")
        return sorted(int(folder.name.rpartition("-")[2]) for folder in folders if is_sealed(folder))

    def last_written(self) -> float:
        """When the newest checkpoint was sealed, in seconds since the epoch."""
        seals = (self.root / ".work" / "post_train").glob(f"{NAME}-*/checkpoint-{self.last_step()}/seal.json")
        return max((seal.stat().st_mtime for seal in seals), default=0.0)

    def last_step(self) -> int:
        return max(self.steps(), default=0)

    def newest_stage(self) -> dict[str, Any]:
        below = {"flow_runs": {"parent_flow_run_id": {"any_": [self.pipeline]}}, "sort": "EXPECTED_START_TIME_DESC"}
        newest: dict[str, Any] = ask(self.url, "flow_runs/filter", below)[0]
        return newest

    def log(self, run: str) -> str:
        lines: list[dict[str, str]] = []
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        while part := ask(self.url, "logs/filter", {**wanted, "offset": len(lines)}):
            lines += part
        return "\n".join(line["message"] for line in lines)

    def cancel(self, run: str) -> None:
        """As the button in the UI does."""
        ask(self.url, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def finish(self) -> int:
        """Let the pipeline come to its end, which must be a good one; at which step its last process went on."""
        if not self.pipeline or state_of(self.url, self.pipeline) in FINAL - {"Completed"}:
            self.pipeline = start_run(self.url, "pipeline/cpu", targets=[CELL])
        assert until(lambda: state_of(self.url, self.pipeline) in FINAL, LONG), self.explain()
        assert state_of(self.url, self.pipeline) == "Completed", self.explain()
        costs = json.loads((self.root / f"artifacts/costs/post_train-{NAME}.json").read_text())
        return int(costs["resumed_at_step"])

    def require_equal(self) -> None:
        """What was disturbed equals what was not: the weights byte for byte, the points of the curves once each."""
        weights, points = self.result()
        assert weights == self.reference[0], "other weights than an undisturbed training's"
        assert points == self.reference[1], sorted(set(points.items() ^ self.reference[1].items()))[:5]

    def require_sound_records(self) -> None:
        """dvc.lock reads, and tells what lies there; MLflow's and Prefect's databases are whole."""
        assert self.run("dvc", "status", CELL).stdout.strip().endswith("up to date.")
        for database in (self.root / "mlruns/mlflow.db", self.root / ".work/stack/prefect/prefect.db"):
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                assert connection.execute("pragma integrity_check").fetchone() == ("ok",), database

    def explain(self) -> str:
        """What there is to see when something did not happen."""
        words = [f"steps {self.steps()}", f"trainings {self.find_trainings()}"]
        with suppress(OSError):
            words += [str(ask(self.url, f"flow_runs/{self.pipeline}")["state"]), self.log(self.pipeline)[-2000:]]
            words += [str(self.newest_stage()["state"]), self.log(self.newest_stage()["id"])[-2000:]]
        words += [f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in self.state.glob("worker-*.log")]
        return "\n".join(words)


def find_marked_command(state: Path, module: str) -> list[psutil.Process]:
    """Processes of the stack that are `python -m module`, not the shells that start them."""
    found = []
    for process in find_marked(state):
        with suppress(psutil.Error):
            command = process.cmdline()
            if module in command and "python" in Path(command[0]).name:
                found.append(process)
    return found


def shrink(params: dict[str, Any], num_steps: int) -> None:
    """A world that is made in seconds, and one training of many small steps."""
    params["presets"], params["seeds"] = ["uncertainty_aware"], [0]
    params["objective"] = {"uncertainty_aware": params["objective"]["uncertainty_aware"]}
    params["registration"]["candidate"] = "uncertainty_aware"
    params["world"].update(num_train_examples=48, num_validation_examples=12, num_test_examples=24, num_ood_items_per_task=8)
    params["base_model"].update(num_steps=60, batch_size=16, hidden_size=32)
    params["token_scores"]["reference"] = "none"
    params["training"].update(num_steps=num_steps, batch_size=16, micro_batch_size=4, log_every_steps=20, save_every_steps=20)
    params["probe"]["every_steps"] = 200
    params["compute"]["device"] = "cpu"
    params["routing"]["retry_delay_seconds"] = 1


def seconds_until(is_so: Callable[[], Any], limit: float) -> float:
    """How long it took; fails after the limit."""
    started = time.monotonic()
    assert until(is_so, limit), f"not within {limit:.0f} s"
    return round(time.monotonic() - started, 1)
