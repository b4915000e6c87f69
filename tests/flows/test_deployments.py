"""Laws of work pools, deployments and crash detection, read back from a real Prefect server after they were applied twice."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.artifacts import ROOT
from components.errors import BallastError
from components.params import load_params
from components.run_params import HERE, RoutingParams
from flows.crash_detection import HEARTBEAT_SECONDS, NAME, SILENCE_SECONDS
from flows.deployments import NIGHTLY, list_deployments
from flows.work_pools import FOLDER, read_pool, read_pools
from tests.infra.checkout import Checkout, ask, start_run, state_of, until
from tests.prefect_server import free_port

POOLS = [pool.name for pool in read_pools()]
ROUTING = load_params().routing
DEPLOYMENTS = {"pipeline/cpu", "promote/cpu", "rollback/cpu", *(f"stage/{pool}" for pool in POOLS)}
pytestmark = pytest.mark.filterwarnings("ignore")


class Server:
    def __init__(self, home: Path, checkout: Checkout) -> None:
        port = free_port()
        self.url, self.checkout = f"http://127.0.0.1:{port}/api", checkout
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        environ = checkout.environ(PREFECT_HOME=str(home), PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="true")
        with (home / "log").open("w") as log:
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def is_up(self) -> bool:
        try:
            return ask(self.url, "health") is True
        except OSError:
            return False

    def apply(self) -> str:
        done = self.checkout.run("flows.deployments", PREFECT_API_URL=self.url)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.url, f"deployments/name/{name}")
        return found

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)


@pytest.fixture(scope="module")
def deployer(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The checkout that the deployments are applied from."""
    return Checkout(tmp_path_factory.mktemp("deployer"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, deployer: Checkout) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), deployer)
    try:
        assert until(server.is_up, 180), "it answers"
        server.apply()
        server.first_ids = {name: server.deployment(name)["id"] for name in DEPLOYMENTS}  # type: ignore[attr-defined]
        switch_on_nightly(server)
        server.apply()
        yield server
    finally:
        server.end()


def switch_on_nightly(server: Server) -> None:
    """What the switch in the UI does."""
    import httpx

    pipeline = server.deployment("pipeline/cpu")
    server.shipped = pipeline["schedules"]  # type: ignore[attr-defined]
    address = f"{server.url}/deployments/{pipeline['id']}/schedules/{pipeline['schedules'][0]['id']}"
    httpx.patch(address, json={"active": True}).raise_for_status()


# ---- on the server ----


@pytest.mark.prefect
@pytest.mark.slow
def test_the_server_has_the_pools_of_the_files(server: Server) -> None:
    for file in FOLDER.glob("*.json"):
        wanted, found = json.loads(file.read_text()), ask(server.url, f"work_pools/{file.stem}")
        assert {name: found[name] for name in wanted} == wanted


@pytest.mark.prefect
def test_applying_again_changes_no_deployment_and_adds_none(server: Server) -> None:
    flows = {flow["id"]: flow["name"] for flow in ask(server.url, "flows/filter", {})}
    found = {f"{flows[each['flow_id']]}/{each['name']}": each["id"] for each in list_all(server)}
    assert found == server.first_ids and set(found) == DEPLOYMENTS  # type: ignore[attr-defined]


def list_all(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(server.url, "deployments/filter", {})
    return found


@pytest.mark.prefect
@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_takes_as_many_stages_at_once_as_params_say_and_queues_the_rest(server: Server, pool: str) -> None:
    stage = server.deployment(f"stage/{pool}")
    assert stage["work_pool_name"] == pool
    assert stage["global_concurrency_limit"]["limit"] == (ROUTING.num_at_once(pool) if pool in ROUTING.pools else 1)
    assert stage["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert ("gpu" in stage["tags"]) == pool.startswith("gpu") and {"ballast", "stage"} <= set(stage["tags"])


@pytest.mark.prefect
def test_the_pipeline_s_second_run_waits_for_the_first(server: Server) -> None:
    assert server.deployment("pipeline/cpu")["global_concurrency_limit"]["limit"] == 1


@pytest.mark.prefect
def test_the_nightly_schedule_is_shipped_switched_off_and_stays_as_people_have_set_it(server: Server) -> None:
    shipped = server.shipped  # type: ignore[attr-defined]
    assert [(each["slug"], each["schedule"]["cron"], each["active"]) for each in shipped] == [("nightly", NIGHTLY, False)]
    kept = server.deployment("pipeline/cpu")["schedules"]
    assert [(each["slug"], each["schedule"]["cron"], each["active"]) for each in kept] == [("nightly", NIGHTLY, True)]
    assert not [each for each in list_all(server) if each["name"] != "cpu" and each["schedules"]]


@pytest.mark.prefect
def test_forms_have_types_and_the_server_refuses_what_does_not_fit(server: Server) -> None:
    def types(name: str) -> dict[str, Any]:
        schema = server.deployment(name)["parameter_openapi_schema"]
        return {key: value.get("type") for key, value in schema["properties"].items()}

    assert types("promote/cpu") == {"version": "integer", "why": "string", "who": "string", "force": "boolean"}
    assert types("rollback/cpu") == {"why": "string", "who": "string"}
    assert types("stage/gpu")["address"] == "string" and "targets" in types("pipeline/cpu")
    assert server.deployment("promote/cpu")["parameter_openapi_schema"]["required"] == ["version", "why", "who"]
    for wrong in ({"version": "three", "why": "w", "who": "a"}, {"version": 3, "why": "", "who": "a"}, {"version": 3}):
        with pytest.raises(urllib.error.HTTPError, match=r"409|422"):
            start_run(server.url, "promote/cpu", **wrong)


@pytest.mark.prefect
def test_one_automation_marks_runs_without_a_heartbeat(server: Server) -> None:
    found = ask(server.url, "automations/filter", {})
    assert [(each["name"], each["enabled"]) for each in found] == [(NAME, True)]
    assert timedelta(seconds=found[0]["trigger"]["within"]) == timedelta(seconds=SILENCE_SECONDS)
    assert (found[0]["actions"][0]["type"], found[0]["actions"][0]["state"]) == ("change-flow-run-state", "CRASHED")


@pytest.mark.prefect
@pytest.mark.slow
def test_a_run_happens_in_the_checkout_of_its_worker_and_not_of_the_deployer(server: Server, tmp_path: Path) -> None:
    theirs = Checkout(tmp_path / "theirs")
    (theirs.root / "elsewhere").mkdir()
    environ = theirs.environ(PREFECT_API_URL=server.url, PREFECT_WORKER_QUERY_SECONDS="1", PATH=path_with_our_python())
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu"]
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(command, cwd=theirs.root, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        run = start_run(server.url, "stage/cpu", address="where")
        assert until(lambda: state_of(server.url, run) in ("Completed", "Failed", "Crashed"), 90)
        assert state_of(server.url, run) == "Completed", (tmp_path / "log").read_text()
        assert (theirs.root / "where.txt").read_text().strip() == str(theirs.root)
        assert not (server.checkout.root / "where.txt").exists()
    finally:
        family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        os.killpg(worker.pid, signal.SIGKILL)
        psutil.wait_procs(family, 30)


def path_with_our_python() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


# ---- without a server ----


@pytest.mark.parametrize("url", ["", f"http://127.0.0.1:{free_port()}/api"], ids=["none", "dead"])
def test_without_a_server_it_is_one_clear_error(url: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ |= {"PREFECT_API_URL": url} if url else {}
    done = subprocess.run([sys.executable, "-m", "flows.deployments"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines()), done.stderr.startswith("error: ")) == (1, 1, True)
    assert "PREFECT_API_URL" in done.stderr


def test_a_route_to_a_pool_without_a_file_is_refused() -> None:
    routing = RoutingParams.model_validate({"pools": {"tpu": {}}, "stages": {"post_train": "tpu", "compare": HERE}})
    with pytest.raises(BallastError, match=r"work pool tpu: .*infra/prefect/work_pools has only cpu, gpu"):
        list_deployments(["cpu", "gpu"], routing)
    with pytest.raises(BallastError, match="work pool cpu"):
        list_deployments(["gpu"], RoutingParams())


def test_every_pool_that_params_describe_has_a_file() -> None:
    assert set(ROUTING.pools) <= set(POOLS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "same name"),
        ({"typo": 1}, "nothing else"),
        ({"base_job_template": {"variables": {"properties": {"image": {}}}, "job_configuration": {}}}, "refers to no image"),
    ],
)
def test_a_pool_file_that_would_do_nothing_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({**json.loads((FOLDER / "gpu.json").read_text()), **change}))
    with pytest.raises(BallastError, match=message):
        read_pool(file)


@pytest.mark.parametrize("pool", [pool for pool in read_pools() if pool.type == "process"], ids=lambda pool: pool.name)
def test_flow_runs_of_a_process_pool_start_in_their_worker_s_folder_and_send_heartbeats(pool: Any) -> None:
    values = {name: field.get("default") for name, field in pool.base_job_template["variables"]["properties"].items()}
    assert values["working_dir"] == "."
    assert values["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)
    assert HEARTBEAT_SECONDS + 15 <= SILENCE_SECONDS <= 55, "a late heartbeat is no crash, and a crash is known within a minute"
