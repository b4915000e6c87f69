"""The services of infra/compose.yaml as plain processes: their own commands and environments, a real PostgreSQL, an S3 server.

Only addresses are exchanged (a container's name becomes 127.0.0.1 and a free port). What PostgreSQL and the bucket hold in the
end is asked of them, not of the servers above; and it is still there when those were killed and have been started anew.
"""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.is_healthy import is_healthy
from tests.infra.compose_services import ROOT, read_services
from tests.infra.postgres import Postgres, find_programs
from tests.prefect_server import free_port

pytestmark = [pytest.mark.prefect, pytest.mark.mlflow_server, pytest.mark.slow]

SECRETS = {
    "POSTGRES_PASSWORD": "of-postgres",
    "PREFECT_DB_PASSWORD": "of-prefect's role: @/%",  # quotes and marks of URLs: no address may hold it
    "MLFLOW_DB_PASSWORD": "of-mlflow's role",
    "STORE_ACCESS_KEY": "access",
    "STORE_SECRET_KEY": "of-the-store",
    "PREFECT_AUTH_STRING": "somebody:of-prefect",
    "MLFLOW_ADMIN_PASSWORD": "of-mlflow-administrator",
    "MLFLOW_WORKER_PASSWORD": "of-mlflow-administrator",
    "MLFLOW_SECRET_KEY": "signs-forms",
}
DVC_YAML = f"""
stages:
  prepare:
    cmd: {sys.executable} -c "open('rows', 'w').write('1')"
    outs: [rows]
  register:
    cmd: {sys.executable} register.py
    deps: [rows, register.py]
    outs: [registered]
"""
REGISTER = """
import mlflow

client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("toy"))
client.log_metric(run.info.run_id, "accuracy", 0.75)
client.log_text(run.info.run_id, "a card", "card.md")
client.create_registered_model("toy")
version = client.create_model_version("toy", f"{run.info.artifact_uri}/card.md", run.info.run_id)
client.set_registered_model_alias("toy", "challenger", version.version)
client.set_terminated(run.info.run_id)
open("registered", "w").write(version.version)
"""
DEPLOY_AND_RUN = """
import json, sys, time
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from flows.pipeline import pipeline

root = sys.argv[1]
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="cpu", type="process"))
    flow = client.create_flow(pipeline)
    step = {"prefect.deployments.steps.set_working_directory": {"directory": root}}
    deployment = client.create_deployment(
        flow, "cpu", entrypoint="flows.pipeline.pipeline", work_pool_name="cpu", pull_steps=[step], path=root, version="1")
    run = client.create_flow_run_from_deployment(deployment)
    while not run.state.is_final():
        time.sleep(0.5)
        run = client.read_flow_run(run.id)
    print(json.dumps({"id": str(run.id), "state": run.state.name, "message": run.state.message}))
"""


class Topology:
    """The services, each with its own command and its own environment of compose.yaml, and nothing of ours beside."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.folder, self.postgres = folder, postgres
        self.ports = {name: free_port() for name in ("store", "prefect", "mlflow", "worker-cpu")}
        ports = {"PREFECT_PORT": str(self.ports["prefect"]), "MLFLOW_PORT": str(self.ports["mlflow"]), "MLFLOW_WORKERS": "1"}
        self.services = read_services({**SECRETS, **ports})
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def on_loopback(self, text: str) -> str:
        for name, port in (("store", 8333), ("prefect", 4200), ("mlflow", 5000)):
            text = text.replace(f"http://{name}:{port}", self.url(name))
            text = re.sub(rf"^((?:--port=)?){port}$", rf"\g<1>{self.ports[name]}", text)
        return text.replace("0.0.0.0", "127.0.0.1").replace("infra/", f"{ROOT}/infra/")

    def environ(self, name: str) -> dict[str, str]:
        wanted = {key: self.on_loopback(str(value)) for key, value in self.services[name].get("environment", {}).items()}
        if "PGHOST" in wanted:
            wanted |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.postgres.port)}
        ours = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.folder)}
        ours |= {"PREFECT_WORKER_WEBSERVER_PORT": str(self.ports["worker-cpu"])}
        return {**self.image_environ(name), **ours, **wanted}

    def image_environ(self, name: str) -> dict[str, str]:
        """What the image sets, in folders of ours."""
        text = (
            (ROOT / "infra" / "docker" / "cpu.Dockerfile")
            .read_text(encoding="utf-8")
            .partition("\nENV ")[2]
            .partition("\nWORKDIR")[0]
        )
        pairs = dict(line.rstrip(" \\").split("=", 1) for line in text.splitlines())
        folders = {"/tmp/": f"{self.folder}/tmp-{name}/", "/opt/ballast": str(ROOT)}
        for place, folder in folders.items():
            pairs = {key.strip(): value.replace(place, folder) for key, value in pairs.items()}
        return pairs

    def command(self, name: str) -> list[str]:
        return [self.on_loopback(str(word)) for word in self.services[name]["command"]]

    def start(self, name: str, cwd: Path | None = None, command: list[str] | None = None) -> subprocess.Popen[bytes]:
        with self.log_file(name).open("a") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": log, "start_new_session": True}
            process = subprocess.Popen(command or self.command(name), cwd=cwd or self.folder, env=self.environ(name), **options)
        self.running[name] = process
        return process

    def run_once(self, *names: str) -> None:
        """One-off services, side by side; each must end with 0."""
        for process, name in [(self.start(name), name) for name in names]:
            assert process.wait(timeout=180) == 0, self.log_file(name).read_text()

    def wait_for(self, name: str, path: str) -> None:
        url = self.url(name) + path
        assert until(lambda: is_healthy(url) or self.running[name].poll() is not None, 180), f"{name} does not answer"
        assert self.running[name].poll() is None, self.log_file(name).read_text()

    def start_servers(self) -> None:
        self.start("prefect")
        self.start("mlflow")
        self.wait_for("prefect", "/api/health")
        self.wait_for("mlflow", "/health")

    def kill(self, *names: str) -> None:
        """As a machine that goes away does it: nobody gets the chance to write something down."""
        for name in names:
            process = self.running.pop(name)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run_client(self, code: str, *words: str) -> dict[str, Any]:
        """A client of Prefect's with the worker's environment; what its last line says."""
        command = [sys.executable, "-c", code, *words]
        options: dict[str, Any] = {"cwd": self.folder, "env": self.environ("worker-cpu"), "capture_output": True, "text": True}
        process = subprocess.run(command, timeout=240, check=False, **options)
        assert process.returncode == 0, process.stdout + process.stderr
        answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return answer

    def log_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def get(self, url: str, sign_in: str | None = None, host: str | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(url)
        if sign_in:
            request.add_header("Authorization", "Basic " + base64.b64encode(sign_in.encode()).decode())
        if host:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def objects(self, bucket: str) -> list[str]:
        import boto3

        environ = self.environ("mlflow")
        keys = {"aws_access_key_id": environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": environ["AWS_SECRET_ACCESS_KEY"]}
        client = boto3.client("s3", endpoint_url=environ["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
        return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def until(is_so: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(is_so())


def make_repository(root: Path) -> Path:
    from dvc.repo import Repo

    root.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    Repo.init(str(root)).close()
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "register.py").write_text(REGISTER)
    (root / "params.yaml").write_text("{}\n")
    return root


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """Everything up, as `docker compose up` does it: in the order of `depends_on`."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL with its contrib modules here (pg_trgm): install Debian's `postgresql`")
    postgres = Postgres(programs, SECRETS["POSTGRES_PASSWORD"])
    topology = Topology(tmp_path_factory.mktemp("topology"), postgres)
    try:
        postgres.start()
        script = ROOT / "infra" / "postgres" / "create_databases.sh"
        environ = {**postgres.environ, **SECRETS, "PGPASSWORD": SECRETS["POSTGRES_PASSWORD"]}
        subprocess.run([script], env=environ, check=True)
        moto = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(topology.ports["store"])]
        topology.start("store", command=moto)
        topology.start("prefect-migrate")
        topology.start("mlflow-migrate")
        topology.wait_for("store", "/moto-api/")
        topology.run_once("store-buckets")
        for name in ("prefect-migrate", "mlflow-migrate"):
            assert topology.running.pop(name).wait(timeout=180) == 0, topology.log_file(name).read_text()
        topology.start_servers()
        yield topology
    finally:
        topology.kill(*topology.running)
        postgres.remove()


@pytest.fixture(scope="module")
def run(topology: Topology) -> dict[str, Any]:
    """A flow run of a deployment, in the worker of compose.yaml, on a repository of two stages; the second registers a model."""
    root = make_repository(topology.folder / "repository")
    topology.start("worker-cpu", cwd=root)
    run = topology.run_client(DEPLOY_AND_RUN, str(root))
    assert run["state"] == "Completed", run["message"] + topology.log_file("worker-cpu").read_text()
    topology.kill("worker-cpu")
    return run


def in_postgres(topology: Topology) -> dict[str, Any]:
    def ask(database: str, question: str) -> list[tuple[Any, ...]]:
        role = database.partition("_")[0]
        return topology.postgres.ask(database, role, SECRETS[f"{role.upper()}_DB_PASSWORD"], question)

    return {
        "flow runs": ask("prefect", "select state_name from flow_run"),
        "versions": ask("mlflow", "select name, version from model_versions"),
        "aliases": ask("mlflow", "select name, alias, version from registered_model_aliases"),
        "metrics": ask("mlflow", "select key, value from latest_metrics"),
        "users": ask("mlflow_auth", "select username, is_admin from users"),
    }


EXPECTED = {
    "flow runs": [("Completed",)],
    "versions": [("toy", 1)],
    "aliases": [("toy", "challenger", 1)],
    "metrics": [("accuracy", 0.75)],
    "users": [("admin", True)],
}


def test_a_deployment_runs_to_its_end_and_its_traces_are_in_postgresql_and_in_the_bucket(
    topology: Topology, run: dict[str, Any]
) -> None:
    assert in_postgres(topology) == EXPECTED
    assert [key.rpartition("/")[2] for key in topology.objects("mlflow")] == ["card.md"]


def test_the_servers_refuse_who_does_not_sign_in_and_mlflow_a_foreign_host(topology: Topology) -> None:
    flows, experiments = f"{topology.url('prefect')}/api/admin/version", f"{topology.url('mlflow')}/api/2.0/mlflow/users/current"
    administrator = f"admin:{SECRETS['MLFLOW_ADMIN_PASSWORD']}"
    assert [topology.get(url)[0] for url in (flows, experiments)] == [401, 401]
    assert topology.get(flows, SECRETS["PREFECT_AUTH_STRING"])[0] == 200
    assert topology.get(experiments, administrator)[0] == 200
    assert topology.get(experiments, administrator, host="ballast.example")[0] == 403
    assert b"<html" in topology.get(f"{topology.url('prefect')}/")[1]  # the page that asks for the password


def test_a_role_enters_its_own_databases_only(topology: Topology) -> None:
    import psycopg2

    for database, role in (("prefect", "mlflow"), ("mlflow", "prefect"), ("mlflow_auth", "prefect")):
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            topology.postgres.ask(database, role, SECRETS[f"{role.upper()}_DB_PASSWORD"], "select 1")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        topology.postgres.ask("prefect", "prefect", "guessed", "select 1")


def test_no_password_stands_in_a_log_or_on_a_command_line(topology: Topology, run: dict[str, Any]) -> None:
    psutil = pytest.importorskip("psutil")
    texts = {file.name: file.read_text(errors="replace") for file in topology.folder.glob("*.log")}
    texts["postgres"] = (topology.postgres.folder / "log").read_text()
    for process in psutil.Process().children(recursive=True):
        texts[f"process {process.pid}"] = " ".join(process.cmdline())
    secrets = [value for name, value in SECRETS.items() if name != "STORE_ACCESS_KEY"]
    assert len(texts) > 6
    assert [(name, secret) for name, text in texts.items() for secret in secrets if secret in text] == []


def test_a_dump_of_the_registry_can_be_restored(topology: Topology, run: dict[str, Any]) -> None:
    postgres, file = topology.postgres, topology.folder / "mlflow.dump"
    environ = {**postgres.environ, "PGUSER": "postgres", "PGPASSWORD": SECRETS["POSTGRES_PASSWORD"]}
    for command in (
        ["pg_dump", "--format=custom", f"--file={file}", "mlflow"],
        ["createdb", "--owner=mlflow", "restored"],
        ["pg_restore", "--dbname=restored", str(file)],
    ):
        subprocess.run([postgres.programs / command[0], *command[1:]], env=environ, check=True)
    versions = postgres.ask("restored", "postgres", SECRETS["POSTGRES_PASSWORD"], "select name, version from model_versions")
    assert versions == EXPECTED["versions"]


def test_after_all_servers_were_killed_and_started_anew_everything_is_still_there(
    topology: Topology, run: dict[str, Any]
) -> None:
    topology.kill("prefect", "mlflow")
    topology.postgres.stop()
    topology.postgres.start()
    topology.start_servers()
    assert in_postgres(topology) == EXPECTED
    code, body = topology.get(f"{topology.url('prefect')}/api/flow_runs/{run['id']}", SECRETS["PREFECT_AUTH_STRING"])
    assert (code, json.loads(body)["state"]["name"]) == (200, "Completed")
    alias = f"{topology.url('mlflow')}/api/2.0/mlflow/registered-models/alias?name=toy&alias=challenger"
    administrator = f"admin:{SECRETS['MLFLOW_ADMIN_PASSWORD']}"
    code, body = topology.get(alias, administrator)
    assert code == 200, body
    run_id = json.loads(body)["model_version"]["run_id"]
    card = f"{topology.url('mlflow')}/get-artifact?path=card.md&run_uuid={run_id}"  # through the server, which alone has the key
    assert topology.get(card, administrator) == (200, b"a card")
