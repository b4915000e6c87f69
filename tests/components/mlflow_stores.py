"""A store of their own for the tests of tracking: a migrated database, or MLflow's own server on loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import tracking_points
from components.tracking_store import open_client


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated database, copied by the tests that do not ask how it came about."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        open_client().search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tracking_points, "UNSENT", tmp_path / "unsent")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    return tmp_path


class Server:
    """MLflow's own server application on a port of loopback. It can be killed, and comes back on the same port."""

    code = "import sys, mlflow.server, werkzeug.serving as w; w.run_simple('127.0.0.1', int(sys.argv[1]), mlflow.server.app)"

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        store = {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": f"{folder}/artifacts",
        }
        self._environment = {**os.environ, **store, "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", self.code, str(self._port)]
        self._process = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError("the server did not start within a minute")

    def die(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    server = Server(folder)
    yield server
    server.die()


@pytest.fixture
def server(running_server: Server, store: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running_server.uri)
    return running_server


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in open_client().get_metric_history(run_id, key))


def status(run_id: str) -> str:
    return str(open_client().get_run(run_id).info.status)
