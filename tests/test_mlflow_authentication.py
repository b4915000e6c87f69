"""Laws of an MLflow server with accounts: nobody without one, nothing an account was not given, and our own code works there.

One `mlflow server --app-name basic-auth` on loopback, with infra/mlflow/basic_auth.ini as it is, for all of them.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components import tracking_points
from components.artifacts import ROOT
from components.errors import TrackingError
from components.registry import get_version_by_alias, register_candidate
from components.tracking_points import FINGERPRINT_TAG
from components.tracking_recorder import RunRecorder, find_run, send_unsent
from components.tracking_store import initialise_store, open_client
from tests.components.mlflow_stores import history, status
from tests.components.test_registry import make_model, save

pytestmark = pytest.mark.mlflow_server
ADMIN, MEMBER, GUEST = "admin", "member", "guest"
PASSWORD = "only-of-this-test-0"
SEARCH = "api/2.0/mlflow/experiments/search"
TAGS = {FINGERPRINT_TAG: "f1"}


@dataclass
class AuthServer:
    uri: str
    log: Path

    def ask(self, path: str, user: str = "", password: str = PASSWORD, **headers: str) -> int:
        """The status of a POST as a program sends it."""
        if user:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(f"{self.uri}/{path}", b'{"max_results": 1}', headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def auth_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthServer]:
    folder = tmp_path_factory.mktemp("auth-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "infra/mlflow/basic_auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
    environ |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    server, log = AuthServer(f"http://127.0.0.1:{port}", folder / "log"), folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=file, stderr=file, start_new_session=True)
    try:
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up and process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{server.uri}/health", timeout=5).close()
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"the server did not start:\n{log.read_text()}")
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def environment(auth_server: AuthServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", auth_server.uri)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.setattr(tracking_points, "UNSENT", tmp_path / "unsent")
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def log_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str = PASSWORD) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


@pytest.fixture(scope="module")
def accounts(auth_server: AuthServer) -> str:
    """A member who may write to the experiment Ballast, a guest who may do nothing; the experiment's id."""
    from mlflow.server.auth.client import AuthServiceClient

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", auth_server.uri)
        log_in(monkeypatch, ADMIN)
        experiment = initialise_store()
        client = AuthServiceClient(auth_server.uri)
        for user in (MEMBER, GUEST):
            client.create_user(user, PASSWORD)
        client.grant_user_permission(MEMBER, "experiment", experiment, "EDIT")
        return experiment


@pytest.mark.parametrize(
    ("user", "password", "expected"),
    [("", "", 401), (ADMIN, "wrong-password-1", 401), ("nobody", PASSWORD, 401), (ADMIN, PASSWORD, 200)],
)
def test_a_call_without_the_right_password_is_refused(auth_server: AuthServer, user: str, password: str, expected: int) -> None:
    assert auth_server.ask(SEARCH, user, password) == expected


def test_another_host_name_and_a_foreign_page_are_refused_even_with_the_password(auth_server: AuthServer) -> None:
    assert auth_server.ask(SEARCH, ADMIN, Host="ballast.example") == 403, "a name that was rebound to 127.0.0.1"
    assert auth_server.ask(SEARCH, ADMIN, Origin="http://ballast.example") == 403
    assert auth_server.ask(SEARCH, ADMIN, Origin=auth_server.uri) == 200


def test_a_member_records_and_registers_and_an_administrator_sees_it(
    accounts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, MEMBER)
    lineage = {"params.sha256": "p", "git.commit": "c"}
    with RunRecorder("sft-0", {"a": 1}, TAGS, lineage=lineage) as run:
        run.log(1, {"loss": 0.5})
        run.refer_to_model()
    registered = register_candidate(
        save(tmp_path / "model", make_model()),
        name="members-model",
        tags={},
        metrics={"accuracy": 0.5},
        description="a test",
        run_name="sft-0",
        prompts=["a b"],
        max_new_tokens=2,
    )
    assert registered.artifact_bytes > 0
    log_in(monkeypatch, ADMIN)
    assert (find_run("sft-0", "f1"), history(run.run_id, "loss")) == (run.run_id, [(1, 0.5)])
    assert get_version_by_alias("members-model", "challenger") == registered


def test_an_account_without_permission_gets_nothing(
    accounts: str, auth_server: AuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, GUEST)
    assert auth_server.ask(SEARCH, GUEST) == 200
    assert open_client().search_experiments() == []
    with pytest.raises(TrackingError, match=r"403.*MLFLOW_TRACKING_USERNAME"):
        initialise_store()


def test_a_training_without_an_account_is_recorded_here_says_so_once_and_is_sent_later(
    accounts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fingerprint = "kept"
    start = time.monotonic()
    with RunRecorder("kept", {"a": 1}, {FINGERPRINT_TAG: fingerprint}, flush_seconds=0.0) as run:
        for step in range(5):
            run.log(step, {"loss": 1.0 / (step + 1)})
            time.sleep(0.02)
        run.refer_to_model()
    assert time.monotonic() - start < 10
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "MLFLOW_TRACKING_PASSWORD" in said and "python -m components.tracking" in said

    [kept] = (tmp_path / "unsent").iterdir()
    content = kept.read_bytes()
    log_in(monkeypatch, ADMIN)
    assert send_unsent() == 5
    run_id = find_run("kept", fingerprint)
    assert run_id is not None
    assert (status(run_id), history(run_id, "loss")) == ("FINISHED", [(step, 1.0 / (step + 1)) for step in range(5)])
    stored = open_client().get_run(run_id)
    assert (stored.data.params, stored.info.run_name, len(stored.outputs.model_outputs)) == ({"a": "1"}, "kept", 1)
    kept.write_bytes(content)
    send_unsent()
    assert len(open_client().search_runs([accounts], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")) == 1
    assert history(run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(5)]


def test_a_password_in_the_address_is_used_and_neither_recorded_nor_printed(
    accounts: str, auth_server: AuthServer, tmp_path: Path
) -> None:
    code = """
import json, os, pathlib, sys
from components import tracking_points
from components.tracking import RunRecorder
from components.tracking_store import open_client
tracking_points.UNSENT = pathlib.Path("unsent")
for address in sys.argv[1:]:
    os.environ["MLFLOW_TRACKING_URI"] = address
    for name in ("USERNAME", "PASSWORD"):
        os.environ.pop(f"MLFLOW_TRACKING_{name}", None)
    with RunRecorder("addressed", {}, {"ballast.fingerprint": "a"}, lineage={"params.sha256": "p", "git.commit": "c"}) as run:
        run.log(1, {"loss": 0.5})
    if run.run_id:
        print(json.dumps(open_client().get_run(run.run_id).to_dictionary()))
"""
    words = (PASSWORD, "Wrong-word-77")
    addresses = [auth_server.uri.replace("http://", f"http://{ADMIN}:{password}@") for password in words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *addresses],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    [kept] = (tmp_path / "unsent").iterdir()
    shown = done.stdout + done.stderr + kept.read_text()
    assert '"loss": 0.5' in done.stdout and "recorded in unsent/kept-" in done.stderr, shown
    assert not [word for word in (*words, f"{ADMIN}:") if word in shown]
    assert auth_server.uri in done.stdout and auth_server.uri in done.stderr


def test_the_accounts_file_holds_no_password_and_gives_nobody_anything() -> None:
    text = (ROOT / "infra/mlflow/basic_auth.ini").read_text()
    settings: dict[str, Any] = dict(line.split(" = ") for line in text.splitlines() if " = " in line and not line.startswith(";"))
    assert settings["default_permission"] == "NO_PERMISSIONS"
    assert "admin_password" not in settings and "@" not in settings["database_uri"]
    assert json.loads(settings["grant_default_workspace_access"]) is False
