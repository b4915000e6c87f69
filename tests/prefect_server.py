"""A real Prefect server on loopback for tests, and what it knows of a flow run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.pipeline import ask_server
from tests.flows.toy_pipeline import until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prefect_server(home: Path, port: int | None = None, **variables: str) -> Iterator[str]:
    """The URL of its API; it ends with the block. `variables`: more of its environment."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}/api"
    server = start_server(home, port, **variables)
    try:
        wait_for_server(server, url, home)
        yield url
    finally:
        stop(server)


def start_server(home: Path, port: int, **variables: str) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api", "DO_NOT_TRACK": "true"}
    environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", **variables}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("a") as log:
        return subprocess.Popen(command, env=environ, cwd=home, stdout=log, stderr=log, start_new_session=True)


def wait_for_server(server: subprocess.Popen[bytes], url: str, home: Path) -> None:
    if not until(lambda: server.poll() is not None or not ask_server(url), seconds=90) or server.poll() is not None:
        raise AssertionError(f"the server did not start:\n{(home / 'log').read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """And all of its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            until(lambda: process.poll() is not None, seconds=10)


class FlowRun:
    """What the server knows of the flow run that this output is of. Task runs and logs arrive some seconds after its end."""

    def __init__(self, api_url: str, out: str) -> None:
        found = re.search(r"/runs/flow-run/([0-9a-f-]{36})", out)
        assert found, out
        self.api_url, self.id = api_url, found[1]
        self.of_this_run = {"flow_runs": {"id": {"any_": [self.id]}}}

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api_url}/{path}", content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def state(self) -> tuple[str, str]:
        state = self.ask(f"flow_runs/{self.id}")["state"]
        return state["name"], state["message"]

    def tasks(self, num_expected: int) -> dict[str, str]:
        found: dict[str, str] = {}

        def have_come() -> bool:
            found.update({task["name"]: task["state_name"] for task in self.ask("task_runs/filter", self.of_this_run)})
            return len(found) == num_expected and not {"Pending", "Running"}.intersection(found.values())

        until(have_come, seconds=15)
        return found

    def log(self, has_come: str) -> str:
        query = {"logs": {"flow_run_id": {"any_": [self.id]}}, "sort": "TIMESTAMP_ASC"}
        text = ""

        def is_there() -> bool:
            nonlocal text
            text = "\n".join(line["message"] for line in self.ask("logs/filter", query))
            return has_come in text

        until(is_there, seconds=15)
        return text

    def artifacts(self) -> dict[str, Any]:
        found = {artifact["key"]: artifact["data"] for artifact in self.ask("artifacts/filter", self.of_this_run)}
        return {key: json.loads(data) if key == "stages" else data for key, data in found.items()}
