"""Laws of a Prefect server with a password and CSRF protection: nobody without the password, and our own code works there.

One `prefect server start` on loopback for all of them.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.pipeline import ask_server, require_server
from tests.flows.toy_pipeline import Repository, make_repository, until
from tests.prefect_server import free_port

pytestmark = pytest.mark.prefect
RIGHT, WRONG = "ballast:Only-of-this-test-0", "ballast:Wrong-word-77"
TOKEN = "hf_" + "Qw3rTy9uIoPaSd7fGhJkLzXcVbNm" + "012345"  # in two parts, or scanners take this file for a leak


def ask(url: str, auth: str = "", body: dict[str, object] | None = None, **headers: str) -> int:
    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server has its database."""
    return tmp_path_factory.mktemp("guarded-server")


@pytest.fixture(scope="module")
def guarded_url(home: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_UI_API_URL": url, "DO_NOT_TRACK": "true"}
    environ |= {"PREFECT_SERVER_API_AUTH_STRING": RIGHT, "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}
    environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environ, cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:
        if not until(lambda: server.poll() is not None or not ask_server(url), seconds=90) or server.poll() is not None:
            pytest.fail(f"the server did not start:\n{(home / 'log').read_text()}")
        yield url
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if server.poll() is None:
                os.killpg(server.pid, number)
                until(lambda: server.poll() is not None, seconds=10)


@pytest.mark.parametrize(("auth", "expected"), [("", 401), (WRONG, 401), (RIGHT, 200)])
def test_a_call_without_the_right_password_is_refused(guarded_url: str, auth: str, expected: int) -> None:
    assert ask(f"{guarded_url}/admin/version", auth) == expected
    assert ask(f"{guarded_url}/admin/settings", auth) == expected


def test_a_change_needs_a_token_that_only_the_password_gives(guarded_url: str) -> None:
    """A page of another origin can make a browser send the password, but cannot read the token."""
    client = str(uuid.uuid4())
    assert ask(f"{guarded_url}/csrf-token?client={client}") == 401
    asked = {"Authorization": "Basic " + base64.b64encode(RIGHT.encode()).decode()}
    with urllib.request.urlopen(urllib.request.Request(f"{guarded_url}/csrf-token?client={client}", headers=asked)) as answer:
        token = json.load(answer)["token"]
    guard = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}
    assert ask(f"{guarded_url}/flow_runs/filter", RIGHT, {}, Origin="http://ballast.example") == 403
    assert [ask(f"{guarded_url}/flow_runs/filter", auth, {}, **guard) for auth in ("", WRONG, RIGHT)] == [401, 401, 200]


def test_whether_it_lives_is_asked_without_a_password(guarded_url: str) -> None:
    assert ask_server(guarded_url) == ""
    require_server(guarded_url)


def run_pipeline(repository: Repository, url: str, auth: str) -> tuple[int, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_", "BALLAST_"))}
    environ |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PREFECT_HOME": str(repository.root / "prefect-home")}
    environ |= {"PREFECT_API_URL": url, "HF_TOKEN": TOKEN} | ({"PREFECT_API_AUTH_STRING": auth} if auth else {})
    command = [sys.executable, "-m", "flows.pipeline", "prepare"]
    done = subprocess.run(command, cwd=repository.root, env=environ, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_pipeline_without_the_password_is_one_clear_error(
    guarded_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out = run_pipeline(make_repository(tmp_path / "repo", monkeypatch), guarded_url, WRONG)
    assert code == 1 and "refuses the call (HTTP 401). Set PREFECT_API_AUTH_STRING" in out, out
    assert "Traceback" not in out and WRONG not in out


def test_a_pipeline_with_the_password_runs_and_the_server_keeps_no_token_that_a_stage_prints(
    guarded_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_repository(tmp_path / "repo", monkeypatch)
    stage = (repository.root / "stage.py").read_text()
    (repository.root / "stage.py").write_text(stage + 'print("the token is", os.environ["HF_TOKEN"], "and no other")\n')
    code, out = run_pipeline(repository, guarded_url, RIGHT)
    assert code == 0 and "hello from prepare" in out, out
    (repository.root / "stage.py").write_text(stage + 'sys.exit("error: cannot log in with " + os.environ["HF_TOKEN"])\n')
    repository.set(num_rows=2)
    failed_code, failed_out = run_pipeline(repository, guarded_url, RIGHT)
    assert failed_code == 1 and "error: cannot log in with" in failed_out, failed_out

    def stored() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(home.glob("prefect.db*")))

    shown = out + failed_out
    assert "the token is *** and no other" in out and "cannot log in with ***" in failed_out
    assert until(lambda: b"the token is *** and no other" in stored() and b"cannot log in with ***" in stored())
    for secret in (TOKEN, RIGHT, RIGHT.partition(":")[2]):
        assert secret not in shown
        assert secret.encode() not in stored()
