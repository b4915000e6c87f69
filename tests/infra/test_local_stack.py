"""Laws of `make up`, `make stack`, `make down`, on real servers and workers of a checkout to throw away."""

import configparser
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.artifacts import ROOT
from components.errors import BallastError
from infra.local_stack import access, services
from infra.local_stack import stack as stack_module
from infra.local_stack.processes import Record, find, find_marked
from infra.local_stack.services import client_environ, describe_mlflow, describe_prefect, read_settings
from tests.infra.checkout import Checkout, ask, start_run, state_of, until
from tests.prefect_server import free_port

STACK = "infra.local_stack"
SERVICES = ["mlflow", "prefect", "worker-cpu", "worker-gpu"]


class Stack:
    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.state = checkout.root / ".work" / "stack" / socket.gethostname()
        self.ports = {"BALLAST_PREFECT_PORT": str(free_port()), "BALLAST_MLFLOW_PORT": str(free_port())}
        self.url = f"http://127.0.0.1:{self.ports['BALLAST_PREFECT_PORT']}/api"

    def up(self) -> str:
        done = self.checkout.run(STACK, "up", **self.ports)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.checkout.run(STACK, "status", "--json")
        return {row["service"]: row for row in json.loads(done.stdout)}

    def pids(self) -> dict[str, int]:
        return {name: row["pid"] for name, row in self.status().items()}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(Checkout(tmp_path_factory.mktemp("stack")))
    try:
        stack.first_output = stack.up()  # type: ignore[attr-defined]
        yield stack
    finally:
        stack.checkout.run(STACK, "down")
        for process in find_marked(stack.state):
            process.kill()


# The tests below use one stack, in the order of the file; each begins with everything running.


@pytest.mark.prefect
@pytest.mark.mlflow_server
@pytest.mark.slow
def test_up_starts_two_servers_and_a_worker_for_each_pool_and_tells_how_to_use_them(stack: Stack) -> None:
    rows = stack.status()
    assert list(rows) == SERVICES
    assert {row["state"] for row in rows.values()} == {"running"} and all(row["memory_bytes"] > 5e7 for row in rows.values())
    last = stack.first_output.splitlines()[-1]  # type: ignore[attr-defined]
    assert last == f"export PREFECT_API_URL={stack.url} MLFLOW_TRACKING_URI={rows['mlflow']['url']}"
    assert {file.name for file in (stack.checkout.root / "mlruns").iterdir()} >= {"mlflow.db"}


@pytest.mark.prefect
@pytest.mark.mlflow_server
def test_every_server_listens_on_loopback_only(stack: Stack) -> None:
    listening = {
        connection.laddr.ip
        for process in find_marked(stack.state)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.prefect
@pytest.mark.mlflow_server
def test_nothing_of_the_stack_reports_home(stack: Stack) -> None:
    for process in find_marked(stack.state):
        environ = process.environ()
        assert (environ["PREFECT_SERVER_ANALYTICS_ENABLED"], environ["DO_NOT_TRACK"]) == ("false", "true")
        assert (environ["MLFLOW_DISABLE_TELEMETRY"], environ["DVC_NO_ANALYTICS"]) == ("true", "1")


@pytest.mark.prefect
@pytest.mark.mlflow_server
def test_a_second_up_leaves_everything_as_it_is(stack: Stack) -> None:
    before = stack.pids()
    assert "started" not in stack.up()
    assert stack.pids() == before


@pytest.mark.prefect
@pytest.mark.mlflow_server
def test_a_port_in_use_is_refused_with_its_owner_before_anything_is_started(stack: Stack, tmp_path: Path) -> None:
    other = Checkout(tmp_path / "other")
    started = time.monotonic()
    done = other.run(STACK, "up", **{**stack.ports, "BALLAST_PREFECT_PORT": str(free_port())})
    assert time.monotonic() - started < 3 + 3  # 3 s are promised; this machine may be busy
    assert (done.returncode, done.stdout) == (1, "")
    owner = next(
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(stack.ports["BALLAST_MLFLOW_PORT"])
    )
    assert f"pid {owner} has it (" in done.stderr and "BALLAST_MLFLOW_PORT=" in done.stderr and "mlflow" in done.stderr
    state = other.root / ".work" / "stack" / socket.gethostname()
    assert find_marked(state) == [] and not list(state.glob("*.json"))


@pytest.mark.prefect
@pytest.mark.mlflow_server
def test_a_worker_of_a_pool_that_the_server_does_not_have_is_refused_and_not_started(stack: Stack) -> None:
    addresses = {"PREFECT_API_URL": stack.url, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = stack.checkout.run(STACK, "worker", "nope", **addresses)
    assert (done.returncode, done.stdout) == (1, "") and "has no work pool 'nope'" in done.stderr
    assert "worker-nope" not in stack.status()


@pytest.mark.prefect
@pytest.mark.mlflow_server
def test_machines_that_share_the_checkout_leave_each_other_s_processes_alone(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second machine's `make stack` and `make down` see nothing of the first's."""
    (tmp_path / "sitecustomize.py").write_text("import socket\nsocket.gethostname = lambda: 'second'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert stack.status() == {}
    assert stack.checkout.run(STACK, "down").stdout == "nothing was running\n"
    monkeypatch.delenv("PYTHONPATH")
    assert {row["state"] for row in stack.status().values()} == {"running"}


@pytest.mark.prefect
@pytest.mark.mlflow_server
@pytest.mark.slow
def test_a_stage_runs_in_a_worker_and_down_gives_it_time_for_its_checkpoint(stack: Stack) -> None:
    root = stack.checkout.root
    run = start_run(stack.url, "stage/gpu", address="nap")
    assert until(lambda: (root / "napping").exists())
    worker = psutil.Process(stack.pids()["worker-gpu"])
    worker.terminate()  # what `down` does first, and a preempted machine
    assert until(lambda: (root / "checkpoint").exists(), 30)
    assert until(lambda: state_of(stack.url, run) in ("Crashed", "Cancelled", "Failed"), 30), state_of(stack.url, run)
    assert until(lambda: not worker.is_running(), 30)
    assert not [process for process in find_marked(stack.state, lambda name: name == "worker-gpu")]


@pytest.mark.prefect
@pytest.mark.mlflow_server
@pytest.mark.slow
def test_what_was_killed_is_started_again_and_the_rest_stays(stack: Stack) -> None:
    stack.up()
    before = stack.pids()
    os.kill(before["mlflow"], signal.SIGKILL)  # its children keep the port
    assert until(lambda: stack.status()["mlflow"]["state"] == "dead", 10)
    stack.up()
    after = stack.pids()
    assert {name for name in SERVICES if after[name] != before[name]} == {"mlflow"}
    assert {row["state"] for row in stack.status().values()} == {"running"}


@pytest.mark.prefect
@pytest.mark.mlflow_server
@pytest.mark.slow
def test_after_a_reboot_everything_starts_again_where_it_was_and_the_runs_of_before_are_crashed(stack: Stack) -> None:
    napping = stack.checkout.root / "napping"
    napping.unlink(missing_ok=True)
    run = start_run(stack.url, "stage/gpu", address="nap")
    assert until(napping.exists)
    for process in find_marked(stack.state):
        process.kill()
    assert until(lambda: not find_marked(stack.state), 10)
    done = stack.checkout.run(STACK, "up")  # without the variables: the ports are remembered
    assert done.returncode == 0, done.stderr
    assert {row["state"] for row in stack.status().values()} == {"running"}
    assert until(lambda: state_of(stack.url, run) == "Crashed", 120), "nobody was left to tell the server"
    assert until(lambda: ask(stack.url, "automations/filter", {})[0]["enabled"], 30), "it was paused while the server started"


@pytest.mark.prefect
@pytest.mark.mlflow_server
@pytest.mark.slow
def test_down_ends_everything_and_says_so(stack: Stack) -> None:
    pids = stack.pids()
    done = stack.checkout.run(STACK, "down")
    assert done.returncode == 0
    assert set(done.stdout.splitlines()) >= {f"ended {name} (pid {pid})" for name, pid in pids.items()}
    assert "killed" not in done.stdout
    assert find_marked(stack.state) == [] and stack.status() == {}
    assert stack.checkout.run(STACK, "down").stdout == "nothing was running\n"


# ---- without servers ----


def test_a_pid_of_somebody_else_is_not_taken_for_ours() -> None:
    myself = psutil.Process()
    record = Record("prefect", myself.pid, myself.create_time(), "", "")
    assert find(record) == myself
    assert find(record._replace(started=record.started - 3600)) is None


PASSWORDS = {
    "PREFECT_SERVER_API_AUTH_STRING": "admin:x",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "of-the-administrator",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-forms",
    "MLFLOW_TRACKING_USERNAME": "worker",
    "MLFLOW_TRACKING_PASSWORD": "of-worker",
}


@pytest.mark.parametrize("lacking", PASSWORDS)
def test_another_address_than_loopback_is_refused_unless_both_servers_and_the_workers_have_their_passwords(lacking: str) -> None:
    given = {name: value for name, value in PASSWORDS.items() if name != lacking}
    with pytest.raises(BallastError, match=rf"0\.0\.0\.0.*, and {lacking} must be set before.*docs/security\.md"):
        read_settings({"BALLAST_HOST": "0.0.0.0", **given}, {})
    settings = read_settings({"BALLAST_HOST": "0.0.0.0", **PASSWORDS}, {})
    assert settings.url("mlflow") == "http://127.0.0.1:5000"


def test_mlflow_s_accounts_on_loopback_need_all_that_they_need_elsewhere_and_one_line_names_it() -> None:
    with pytest.raises(BallastError) as refused:
        read_settings({"MLFLOW_AUTH_ADMIN_PASSWORD": "of-the-administrator"}, {})
    lacking = "MLFLOW_FLASK_SERVER_SECRET_KEY and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD must be set"
    assert lacking in str(refused.value) and "PREFECT" not in str(refused.value) and "\n" not in str(refused.value)
    without_prefect_s = {name: value for name, value in PASSWORDS.items() if name.startswith("MLFLOW")}
    read_settings(without_prefect_s, {})


def test_mlflow_with_accounts_gives_nobody_anything_and_keeps_them_beside_its_runs(tmp_path: Path) -> None:
    settings = read_settings(PASSWORDS, {})
    service = describe_mlflow(settings, PASSWORDS)
    assert "--app-name basic-auth" in " ".join(service.command)
    assert service.environ["MLFLOW_AUTH_CONFIG_PATH"] == str(services.ACCOUNTS_CONFIG)
    derived = tmp_path / "new" / "basic_auth.ini"
    access.write_accounts_config(ROOT / "infra" / "mlflow" / "basic_auth.ini", derived, tmp_path / "100%" / "basic_auth.db")
    config = configparser.ConfigParser()  # as MLflow reads it
    config.read(derived)
    assert config["mlflow"]["default_permission"] == "NO_PERMISSIONS" and "admin_password" not in config["mlflow"]
    assert config["mlflow"]["database_uri"] == f"sqlite:///{tmp_path}/100%/basic_auth.db"
    assert services.ACCOUNTS == ROOT / "mlruns" / "basic_auth.db"


def test_a_file_of_one_s_own_for_mlflow_s_accounts_is_left_to_it_and_without_accounts_there_is_none() -> None:
    own = {**PASSWORDS, "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow.ini"}
    assert describe_mlflow(read_settings(own, {}), own).environ["MLFLOW_AUTH_CONFIG_PATH"] == "/etc/mlflow.ini"
    assert "MLFLOW_AUTH_CONFIG_PATH" not in describe_mlflow(read_settings({}, {}), {}).environ


def test_a_worker_gets_its_own_account_and_none_of_the_servers_secrets() -> None:
    environ = services.describe_worker("gpu", client_environ(PASSWORDS, "http://p", "http://m")).environ
    assert (environ["MLFLOW_TRACKING_USERNAME"], environ["MLFLOW_TRACKING_PASSWORD"]) == ("worker", "of-worker")
    assert environ["PREFECT_API_AUTH_STRING"] == "admin:x"
    assert not set(environ) & {"PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    assert not {"of-the-administrator", "of-forms"} & set(environ.values())


def option(command: list[str], name: str) -> set[str]:
    return set(command[command.index(name) + 1].split(",")) if name in command else set()


def test_mlflow_s_page_may_call_it_at_every_address_it_was_given_and_no_other_page_may() -> None:
    """Browsers send `Origin` with every POST, the page's own too; MLflow compares it as it is, and the name that was called."""
    environ = {
        **PASSWORDS,
        "BALLAST_HOST": "10.1.2.3",
        "BALLAST_MLFLOW_PORT": "5001",
        "BALLAST_ALLOWED_HOSTS": "ml.example, *.lan",
    }
    command = describe_mlflow(read_settings(environ, {}), environ).command
    pages = option(command, "--cors-allowed-origins")
    assert pages == {"http://10.1.2.3:5001", "http://ml.example:5001", "https://ml.example"}, "never a page by a pattern"
    names = option(command, "--allowed-hosts")
    assert names >= {"10.1.2.3:5001", "ml.example", "ml.example:5001", "*.lan", "*.lan:5001", "127.0.0.1:*"} and "*" not in names


def test_mlflow_s_page_works_at_every_address_of_a_machine_that_listens_everywhere() -> None:
    environ = {**PASSWORDS, "BALLAST_HOST": "0.0.0.0"}
    command = describe_mlflow(read_settings(environ, {}), environ).command
    pages = option(command, "--cors-allowed-origins")
    assert pages >= {f"http://{socket.getfqdn()}:5000", "http://127.0.0.1:5000"} and not any("*" in page for page in pages)
    assert "--allowed-hosts" not in command, "MLflow's default: loopback and private addresses"


def test_mlflow_on_loopback_keeps_its_own_defaults_and_pages_that_somebody_chose_are_kept() -> None:
    assert not option(describe_mlflow(read_settings({}, {}), {}).command, "--cors-allowed-origins")
    chosen = {**PASSWORDS, "BALLAST_HOST": "10.1.2.3", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://ml.example"}
    service = describe_mlflow(read_settings(chosen, {}), chosen)
    assert "--cors-allowed-origins" not in service.command
    assert service.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "https://ml.example"


def test_an_administrator_s_password_that_mlflow_would_die_of_is_refused_without_being_shown() -> None:
    with pytest.raises(BallastError, match="12 characters at least") as refused:
        read_settings({**PASSWORDS, "MLFLOW_AUTH_ADMIN_PASSWORD": "tooshort"}, {})
    assert "tooshort" not in str(refused.value)


@pytest.mark.parametrize("port", ["0", "70000", "http", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(BallastError, match="BALLAST_PREFECT_PORT"):
        read_settings({"BALLAST_PREFECT_PORT": port}, {})


def test_both_servers_on_one_port_are_refused() -> None:
    with pytest.raises(BallastError, match="cannot both listen on port 4200"):
        read_settings({"BALLAST_MLFLOW_PORT": "4200"}, {})


def test_a_server_never_becomes_a_client_of_another() -> None:
    """Somebody's shell names the stack's own addresses, or another machine's."""
    elsewhere = {"PREFECT_API_URL": "http://elsewhere/api", "MLFLOW_TRACKING_URI": "http://elsewhere"}
    settings = read_settings({}, {})
    assert "PREFECT_API_URL" not in describe_prefect(settings, elsewhere).environ
    assert "MLFLOW_TRACKING_URI" not in describe_mlflow(settings, elsewhere).environ


def test_a_gpu_pool_s_worker_takes_a_stage_per_gpu_and_the_others_leave_room_for_the_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def limit(pool: str) -> int:
        command = services.describe_worker(pool, {}).command
        return int(command[command.index("--limit") + 1])

    for gpus, wanted in (([], 1), (["GPU-a", "GPU-b"], 2)):
        monkeypatch.setattr(services, "visible_gpus", lambda gpus=gpus: gpus)
        assert limit("gpu") == wanted
    assert limit("cpu") >= 3, "a pipeline that waits for a stage in its own pool, that stage, and a promotion"


def test_a_worker_for_servers_elsewhere_asks_where_they_are(tmp_path: Path) -> None:
    done = Checkout(tmp_path / "joins").run(STACK, "worker", "gpu", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert (done.returncode, "PREFECT_API_URL must be set" in done.stderr) == (2, True)


@pytest.mark.parametrize("pool", ["../x", "GPU", "-gpu", "gpu/..", "a b", ""])
def test_a_pool_whose_name_cannot_be_one_is_refused_before_anything_else(pool: str) -> None:
    with pytest.raises(BallastError, match="is no name of a pool"):
        stack_module.start_pool(pool, {}, print)


def test_records_and_logs_are_a_machine_s_own_and_prefect_s_database_is_the_checkout_s() -> None:
    assert ROOT / ".work" / "stack" / socket.gethostname() == services.STATE
    assert services.base_environ({})["PREFECT_HOME"] == str(ROOT / ".work" / "stack" / "prefect")
