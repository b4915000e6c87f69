"""What the stack on one machine consists of: the commands and environments of two servers and the workers.

    service      listens on                        keeps its state in
    prefect      BALLAST_HOST:BALLAST_PREFECT_PORT   .work/stack/prefect/prefect.db
    mlflow       BALLAST_HOST:BALLAST_MLFLOW_PORT    mlruns/mlflow.db, mlruns/artifacts, with accounts mlruns/basic_auth.db
    worker-cpu   nothing                           nothing
    worker-gpu   nothing                           nothing

Pids, logs and the lock are those of a machine: .work/stack/<host name>.

Everything listens on loopback. Another BALLAST_HOST is refused unless both servers ask for a password (docs/security.md).
"""

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from components.artifacts import ROOT
from components.errors import BallastError, ParamsError
from components.params import load_params
from flows.gpu_lease import visible_gpus
from flows.stage_runner import QUIET
from infra.local_stack import access
from infra.local_stack.ports import ANYWHERE
from infra.local_stack.processes import Record

FOLDER = ROOT / ".work" / "stack"
STATE = FOLDER / socket.gethostname()
"""Records, logs and the lock of this machine: another one that works in this checkout (a shared disk) has its own processes."""
PREFECT_HOME = FOLDER / "prefect"
ARTIFACTS = ROOT / "mlruns" / "artifacts"
ACCOUNTS = ARTIFACTS.parent / "basic_auth.db"
ACCOUNTS_CONFIG = STATE / "basic_auth.ini"
"""infra/mlflow/basic_auth.ini with the accounts at ACCOUNTS, whatever folder a server is started in."""
SERVERS = ("prefect", "mlflow")
POOLS = ("cpu", "gpu")
"""Those whose workers `up` starts; another machine starts its own: `make worker POOL=gpu`."""
WORKER = "worker-"
PORT_VARIABLES = {"prefect": "BALLAST_PREFECT_PORT", "mlflow": "BALLAST_MLFLOW_PORT"}
DEFAULT_PORTS = {"prefect": 4200, "mlflow": 5000}
BESIDE_STAGES = 2
"""Runs of the pool cpu that are no stages: the pipeline, which waits for stages that may be sent there, and a promotion."""


class Settings(NamedTuple):
    """Where the servers listen. Clients on this machine use `address`."""

    host: str
    ports: dict[str, int]

    @property
    def address(self) -> str:
        return "127.0.0.1" if self.host in ANYWHERE else self.host

    def url(self, server: str) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{address}:{self.ports[server]}"


class Service(NamedTuple):
    name: str
    command: list[str]
    environ: dict[str, str]
    url: str = ""


def read_settings(environ: Mapping[str, str], records: Mapping[str, Record]) -> Settings:
    """From the variables BALLAST_HOST, BALLAST_PREFECT_PORT and BALLAST_MLFLOW_PORT; a host that others reach needs passwords
    (infra.local_stack.access).

    Without a variable a server stays where its record says: also after a reboot, until `down`.
    """
    host = environ.get("BALLAST_HOST") or "127.0.0.1"
    known = {server: str(urlsplit(records[server].url).port) for server in SERVERS if server in records}
    ports = {server: _read_port(environ, server, known.get(server) or str(DEFAULT_PORTS[server])) for server in SERVERS}
    if ports["prefect"] == ports["mlflow"]:
        raise ParamsError(f"Prefect and MLflow cannot both listen on port {ports['mlflow']}: set BALLAST_MLFLOW_PORT to another")
    access.require_passwords(environ, host, _is_loopback(host))
    return Settings(host, ports)


def _read_port(environ: Mapping[str, str], server: str, otherwise: str) -> int:
    word = environ.get(PORT_VARIABLES[server]) or otherwise
    if not word.isdecimal() or not 1 <= int(word) <= 65535:
        raise ParamsError(f"{PORT_VARIABLES[server]} must be a port, 1 to 65535, found {word!r}")
    return int(word)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def base_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """This environment, with our own programs first on the PATH and nothing that reports home."""
    programs = str(Path(sys.executable).parent)
    quiet = {name: value for name, value in QUIET.items() if name not in environ}
    path = os.pathsep.join([programs, environ.get("PATH", os.defpath)])
    return {**environ, **quiet, "PATH": path, "PYTHONUNBUFFERED": "1", "PREFECT_HOME": str(PREFECT_HOME)}


def client_environ(environ: Mapping[str, str], prefect_url: str, mlflow_url: str) -> dict[str, str]:
    """What a client of the two servers needs: their addresses, the password that the server here was given, its own account.

    What is the servers' alone stays out: a stage is a client, and the code of models and users runs in it.
    """
    known = {"PREFECT_API_URL": f"{prefect_url}/api", "MLFLOW_TRACKING_URI": mlflow_url}
    if word := environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        known["PREFECT_API_AUTH_STRING"] = word
    return {**access.without_server_secrets(base_environ(environ)), **known}


def describe_prefect(settings: Settings, environ: Mapping[str, str]) -> Service:
    url = settings.url("prefect")
    # Its page asks the API where this variable says, and would look on port 4200 of the reader's own machine.
    page = (
        {} if environ.get("PREFECT_SERVER_UI_API_URL") else {"PREFECT_SERVER_UI_API_URL": f"{_seen_from_outside(settings)}/api"}
    )
    without_client = {name: value for name, value in base_environ(environ).items() if name != "PREFECT_API_URL"}
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        settings.host,
        "--port",
        str(settings.ports["prefect"]),
    ]
    return Service("prefect", command, {**without_client, **page}, url)


def _seen_from_outside(settings: Settings) -> str:
    if settings.host in ANYWHERE:
        return f"http://{socket.getfqdn()}:{settings.ports['prefect']}"
    return settings.url("prefect")


def describe_mlflow(settings: Settings, environ: Mapping[str, str]) -> Service:
    """Jobs are off: nothing of ours needs them, and they have been the way in for strangers."""
    places = ["--backend-store-uri", f"sqlite:///{ARTIFACTS.parent}/mlflow.db", "--artifacts-destination", str(ARTIFACTS)]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--workers", "1"]
    command += ["--host", settings.host, "--port", str(settings.ports["mlflow"])]
    if environ.get(access.ACCOUNTS_SWITCH):
        command += ["--app-name", "basic-auth"]
    command += access.name_options(settings.host, settings.ports["mlflow"], _is_loopback(settings.host), environ)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    without_client = {name: value for name, value in base_environ(environ).items() if name != "MLFLOW_TRACKING_URI"}
    accounts = access.accounts_config(environ, ACCOUNTS_CONFIG)
    return Service("mlflow", command, {**without_client, **quiet, **accounts}, settings.url("mlflow"))


def make_store(settings: Settings, environ: Mapping[str, str]) -> None:
    """A new store that also serves without the server (`dvc repro` with no MLFLOW_TRACKING_URI): its artifacts lie in mlruns/.

    With workers on other machines the server itself begins it and keeps the artifacts: they could not write into mlruns/ here.
    """
    if (ARTIFACTS.parent / "mlflow.db").exists() or not _is_loopback(settings.host):
        return
    code = "from components.tracking_store import initialise_store; initialise_store()"
    without_client = {name: value for name, value in base_environ(environ).items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=without_client, capture_output=True, text=True)
    if done.returncode != 0:
        raise BallastError(f"the MLflow store {ARTIFACTS.parent}/mlflow.db cannot be made: {done.stderr.strip()[-400:]}")


def describe_worker(pool: str, environ: Mapping[str, str]) -> Service:
    """The worker of a pool on this machine; `environ` is a client's.

    A GPU pool's takes as many stages at once as the machine has GPUs, and flows.gpu_lease gives each its own.
    """
    limit = max(1, len(visible_gpus())) if "gpu" in pool.split("-") else _num_at_once(pool) + BESIDE_STAGES
    # Prefect's worker gives up on a server that is away for some 45 of these intervals; and its flow runs end with it.
    polling = {"PREFECT_WORKER_QUERY_SECONDS": "5", "PREFECT_WORKER_HEARTBEAT_SECONDS": "10"}
    heartbeat = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}  # it overrides what the pool says, see flows.crash_detection
    command = [sys.executable, "-m", "infra.local_stack.worker", "--pool", pool, "--limit", str(limit)]
    command += ["--name", f"{pool}@{socket.gethostname()}", "--no-create-pool-if-not-found"]
    return Service(WORKER + pool, command, {**polling, **heartbeat, **environ})


def _num_at_once(pool: str) -> int:
    pools = load_params().routing.pools
    return pools[pool].num_at_once if pool in pools else 1
