"""Laws of stages that run on workers: a real server, real workers, the toy repository; faults included."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.warm_start import Process
from tests.flows.toy_pipeline import ROOT, STAGES, Repository, until
from tests.prefect_server import FlowRun, stop

pytestmark = [pytest.mark.prefect, pytest.mark.slow]
ROUTED = "routing: {num_at_once_here: 2, retry_delay_seconds: 1, pools: {gpu: {num_at_once: 1}}, stages: {train: gpu}}\n"


@pytest.fixture(scope="module")
def deployed_url(api_url: str) -> str:
    """The server with our pools and deployments."""
    environ = {**os.environ, "PREFECT_API_URL": api_url}
    subprocess.run([sys.executable, "-m", "flows.deployments"], env=environ, check=True, cwd=ROOT)
    return api_url


@contextmanager
def worker(root: Path, url: str, pool: str = "gpu") -> Iterator[subprocess.Popen[bytes]]:
    """A process worker in that checkout; what it has started ends with the block."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_"))}
    environ |= {"PREFECT_API_URL": url, "PYTHONPATH": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    environ |= {"PREFECT_HOME": str(root / "worker-home"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--limit", "1"]
    with (root / "worker.log").open("a") as log:
        process = subprocess.Popen(command, cwd=root, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        stop(process)


@pytest.fixture
def routed(repo: Repository) -> Repository:
    def set_routed(**params: object) -> None:
        Repository.set(repo, **params)
        with (repo.root / "params.yaml").open("a") as file:
            file.write(ROUTED)

    repo.set = set_routed  # type: ignore[method-assign]
    repo.set()
    return repo


class Server:
    """Questions to the server about the flow runs of `stage/gpu`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def stages_below(self, flow_run: str) -> list[dict[str, Any]]:
        """Flow runs below this one, oldest first."""
        found: list[dict[str, Any]] = self.ask(
            "flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}, "sort": "START_TIME_ASC"}
        )
        return found

    def cancel(self, flow_run: str) -> None:
        self.ask(f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})


def test_a_routed_stage_runs_in_the_worker_of_its_pool_and_below_the_pipeline(routed: Repository, deployed_url: str) -> None:
    routed.set(num_rows=2)
    with worker(routed.root, deployed_url):
        code, out = routed.run(url=deployed_url)
    assert code == 0, out + (routed.root / "worker.log").read_text()
    run = FlowRun(deployed_url, out)
    assert run.state() == ("Completed", "4 ran, 1 cached")  # the report of other models is the same here
    below = Server(deployed_url).stages_below(run.id)
    assert sorted((stage["name"], stage["state_name"], stage["work_pool_name"]) for stage in below) == [
        ("train@a", "Completed", "gpu"),
        ("train@b", "Completed", "gpu"),
    ]
    where = {row["stage"]: row["where"] for row in run.artifacts()["stages"]}
    assert where == {**dict.fromkeys(STAGES, "here"), "train@a": "gpu", "train@b": "gpu"}
    assert "hello from a with []" in log_of(deployed_url, below[0 if below[0]["name"] == "train@a" else 1]["id"], "hello from a")


def log_of(url: str, flow_run: str, has_come: str) -> str:
    return FlowRun(url, f"/runs/flow-run/{flow_run}").log(has_come)


def test_a_stage_whose_worker_is_killed_ends_at_once_and_is_tried_again_by_the_next_worker(
    routed: Repository, deployed_url: str
) -> None:
    routed.set(nap="a")
    with worker(routed.root, deployed_url) as first:
        pipeline = routed.start(url=deployed_url)
        napper = routed.napper()
        processes = psutil.Process(first.pid).children(recursive=True)
        os.kill(first.pid, signal.SIGKILL)
        assert until(lambda: Process.find(napper) is None, seconds=10)
        assert until(lambda: not any(Process.find(process.pid) for process in processes), seconds=20)
    routed.set()  # nobody naps any more: it is as it was at first, which DVC has
    with worker(routed.root, deployed_url):
        out, _ = pipeline.communicate(timeout=180)
    assert pipeline.returncode == 0, out
    below = Server(deployed_url).stages_below(FlowRun(deployed_url, out).id)
    states = [(stage["name"], stage["state_name"]) for stage in below]
    assert ("train@a", "Crashed") in states and ("train@a", "Cached") in states


def test_a_cancelled_stage_ends_in_ten_seconds_and_its_pipeline_says_so(routed: Repository, deployed_url: str) -> None:
    routed.set(nap="a")
    with worker(routed.root, deployed_url):
        pipeline = routed.start(url=deployed_url)
        napper = routed.napper()
        server = Server(deployed_url)
        running = {"name": {"any_": ["train@a"]}, "state": {"type": {"any_": ["RUNNING"]}}}
        [stage] = server.ask("flow_runs/filter", {"flow_runs": running})
        server.cancel(stage["id"])
        assert until(lambda: Process.find(napper) is None, seconds=10)
        out, _ = pipeline.communicate(timeout=120)
    assert pipeline.returncode == 1
    assert server.ask(f"flow_runs/{stage['id']}")["state_type"] == "CANCELLED"
    assert "train@a failed: its flow run in the pool gpu was cancelled" in FlowRun(deployed_url, out).state()[1]


def test_a_pipeline_that_is_told_to_stop_cancels_its_stage_elsewhere(routed: Repository, deployed_url: str) -> None:
    routed.set(nap="a")
    with worker(routed.root, deployed_url):
        pipeline = routed.start(url=deployed_url)
        napper = routed.napper()
        pipeline.send_signal(signal.SIGTERM)
        out, _ = pipeline.communicate(timeout=60)
        assert pipeline.returncode == 143, out
        assert Process.find(napper) is None
        below = Server(deployed_url).stages_below(FlowRun(deployed_url, out).id)
        assert [(stage["name"], stage["state_type"]) for stage in below] == [("train@a", "CANCELLED")]


def test_while_a_stage_of_a_killed_pipeline_is_at_work_nobody_else_begins(routed: Repository, deployed_url: str) -> None:
    routed.set(nap="a")
    with worker(routed.root, deployed_url):
        pipeline = routed.start(url=deployed_url)
        napper = routed.napper()
        pipeline.kill()
        pipeline.communicate()
        code, out = routed.run()
        assert code == 1 and "still at work" in out
        os.kill(napper, signal.SIGKILL)
    assert until(lambda: routed.run("prepare")[0] == 0)


def test_a_routed_stage_without_a_deployment_is_refused_before_anything_runs(routed: Repository, deployed_url: str) -> None:
    routed.set(num_rows=3)
    params = routed.root / "params.yaml"
    params.write_text(params.read_text().replace("gpu", "moon"))
    code, out = routed.run(url=deployed_url)
    assert code == 1 and "no deployment stage/moon" in out and "--here" in out and "hello" not in out
    assert routed.run("prepare", "--here", url=deployed_url)[0] == 0


def make_clones(repo: Repository, folder: Path) -> tuple[Repository, Path]:
    """The repository with a git origin and a DVC remote, committed and pushed; and a worker's clone without data."""

    def run(*command: str, cwd: Path = repo.root) -> None:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)

    run("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin.git"), cwd=folder)
    run(sys.executable, "-m", "dvc", "remote", "add", "-d", "storage", str(folder / "store"))
    (repo.root / ".gitignore").write_text("/.work/\n/prefect-home/\n/worker*\n/napping\n__pycache__/\n")
    run("git", "remote", "add", "origin", str(folder / "origin.git"))
    run("git", "add", "-A")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "A toy")
    run("git", "push", "-q", "origin", "HEAD:main")
    run("git", "clone", "-q", str(folder / "origin.git"), str(folder / "clone"), cwd=folder)
    return repo, folder / "clone"


def test_a_worker_in_a_clone_of_its_own_gets_code_and_data_and_gives_its_result_back(
    fresh: Repository, tmp_path: Path, deployed_url: str
) -> None:
    with (fresh.root / "params.yaml").open("a") as file:
        file.write(ROUTED.replace("{gpu: {num_at_once: 1}}", "{gpu: {num_at_once: 1, disk: remote}}"))
    here, clone = make_clones(fresh, tmp_path)
    with worker(clone, deployed_url):
        code, out = here.run(url=deployed_url)
    assert code == 0, out + (clone / "worker.log").read_text()
    run = FlowRun(deployed_url, out)
    assert run.state() == ("Completed", "5 ran")
    assert [(here.root / f"artifacts/model-{name}").read_text() for name in "ab"] == ["a1", "b1"]
    [checkout] = [path for path in (clone / ".work/checkouts").iterdir() if path.is_dir()]
    assert (checkout / "artifacts/model-a").read_text() == "a1" and not (clone / "artifacts").exists()
    code, out = here.run(url=deployed_url)  # without a worker: dvc.lock here has all of it
    assert (code, FlowRun(deployed_url, out).state()) == (0, ("Completed", "5 cached"))
