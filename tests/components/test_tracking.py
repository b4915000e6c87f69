"""Laws of tracking: a fresh store may be opened by many at once, a dead one costs seconds and never a point."""

import contextlib
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import tracking
from components.errors import InterruptedStageError, TrackingError
from components.tracking import RunRecorder, find_run, initialise_store, lineage_tags, log_final, send_unsent
from components.tracking_store import hold_lock, open_client

ROOT = Path(tracking.__file__).parent.parent
TAGS = {"ballast.fingerprint": "f1"}


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
    monkeypatch.setattr(tracking, "UNSENT", tmp_path / "unsent")
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


@pytest.fixture(scope="module")
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


def test_importing_imports_no_mlflow() -> None:
    code = "import sys, components.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_four_processes_on_a_fresh_store_all_succeed(tmp_path: Path) -> None:
    """They are forked after the imports, so that they meet at the database and not one by one."""
    code = """
import multiprocessing, sys
import mlflow.store.tracking.sqlalchemy_store
from components.tracking import RunRecorder
def record():
    with RunRecorder("m", {}, {}) as run: run.log(1, {"loss": 1.0})
running = [multiprocessing.get_context("fork").Process(target=record) for _ in range(4)]
for process in running: process.start()
for process in running: process.join()
sys.exit(str([process.exitcode for process in running]) if any(process.exitcode for process in running) else 0)
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new/mlflow.db"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (4,)
        artifacts = database.execute("select artifact_location from experiments where name = 'Ballast'").fetchall()
    assert artifacts == [(f"{tmp_path}/new/artifacts",)]
    assert not list((tmp_path / "new").glob(".*new-*"))


def test_what_a_killed_start_left_is_not_taken_for_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / ".mlflow.db.new-1").write_bytes(b"half")
    assert initialise_store() == initialise_store()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_a_dead_server_costs_ten_seconds_at_most_and_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:secret@127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(TrackingError, match=rf"http://127\.0\.0\.1:{port}.*unset MLFLOW_TRACKING_URI") as raised:
        initialise_store()
    assert time.monotonic() - start < 10
    assert "secret" not in str(raised.value)


def test_a_server_that_accepts_and_never_answers_costs_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(TrackingError, match="timed out"):
            initialise_store()
        assert time.monotonic() - start < 10


def test_a_locked_database_costs_ten_seconds_at_most(store: Path) -> None:
    initialise_store()
    holder = sqlite3.connect(store / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow\.db.*database is locked.*Close what holds the database"):
        initialise_store()
    assert time.monotonic() - start < 10
    holder.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db").write_text("a diary, not a database " * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db.*not a database"):
        initialise_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db/below/mlflow.db")
    with pytest.raises(TrackingError, match="see that its folder can be written"):
        initialise_store()


def test_a_lock_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "lock"), pytest.raises(TrackingError, match=r"fuser .*lock"), hold_lock(tmp_path / "lock", 0.1):
        pass
    with hold_lock(tmp_path / "lock", 0.1):
        pass


def test_an_experiment_deleted_in_the_page_comes_back(store: Path) -> None:
    experiment = initialise_store()
    open_client().delete_experiment(experiment)
    assert initialise_store() == experiment
    with RunRecorder("m", {}, TAGS):
        pass


def test_a_run_holds_its_params_tags_and_curve(store: Path) -> None:
    with RunRecorder("sft-0", {"training": {"lora": {"rank": 8}}, "seed": 0}, {**TAGS, "git.commit": "abc"}) as run:
        for step in range(2000):
            run.log(step, {"loss": 1 / (step + 1)})
        assert history(run.run_id, "loss") == []
    data = open_client().get_run(run.run_id).data
    assert data.params == {"training.lora.rank": "8", "seed": "0"}
    assert data.tags.items() >= {"ballast.model": "sft-0", "ballast.fingerprint": "f1", "git.commit": "abc"}.items()
    assert history(run.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(2000)]
    assert find_run("sft-0", "f1") == run.run_id
    assert find_run("sft-0", "f2") is None
    assert find_run("sft-1", "f1") is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (InterruptedStageError, "KILLED")],
)
def test_a_run_says_how_its_training_ended(store: Path, error: type[BaseException] | None, expected: str) -> None:
    recorder = RunRecorder("m", {}, TAGS)
    if error is None:
        with recorder:
            pass
    else:
        with pytest.raises(error), recorder:
            raise error("stop")
    assert status(recorder.run_id) == expected


def test_points_are_sent_while_the_training_runs(store: Path) -> None:
    with RunRecorder("m", {}, TAGS, flush_seconds=0.05) as run:
        deadline = time.monotonic() + 10
        while not history(run.run_id, "loss") and time.monotonic() < deadline:
            run.log(1, {"loss": 0.5})
            time.sleep(0.06)
        assert history(run.run_id, "loss")


def test_what_is_not_finite_is_counted_and_never_sent(store: Path) -> None:
    with RunRecorder("m", {}, TAGS) as run:
        run.log(7, {"loss": math.nan, "grad_norm": math.inf, "fine": 1.0})
    assert (history(run.run_id, "loss"), history(run.run_id, "grad_norm")) == ([], [])
    assert (history(run.run_id, "fine"), history(run.run_id, "non_finite")) == ([(7, 1.0)], [(7, 2.0)])
    assert open_client().get_run(run.run_id).data.tags["non_finite"] == "loss at step 7"


def test_a_resumed_training_goes_on_in_its_run_without_doubling(store: Path) -> None:
    with pytest.raises(InterruptedStageError), RunRecorder("m", {"a": 1}, TAGS) as first:
        for step in range(1, 6):
            first.log(step, {"loss": step / 3})
        raise InterruptedStageError
    with RunRecorder("m", {"a": 1, "b": 2}, TAGS) as second:
        assert status(second.run_id) == "RUNNING"
        for step in range(4, 9):
            second.log(step, {"loss": step / 3})
    assert second.run_id == first.run_id
    assert status(first.run_id) == "FINISHED"
    assert history(first.run_id, "loss") == [(step, step / 3) for step in range(1, 9)]


def test_a_finished_training_that_is_repeated_is_a_new_run(store: Path) -> None:
    with RunRecorder("m", {}, TAGS) as first:
        pass
    with RunRecorder("m", {}, TAGS) as second:
        pass
    assert first.run_id != second.run_id
    assert find_run("m", "f1") == second.run_id


def test_final_metrics_are_appended_once_to_a_run_that_ended(store: Path) -> None:
    with RunRecorder("m", {}, TAGS) as run:
        pass
    for _ in range(2):
        log_final(run.run_id, {"ood.accuracy": 0.75, "bad": math.nan}, {"gate": "passed"})
    assert history(run.run_id, "ood.accuracy") == [(0, 0.75)]
    assert history(run.run_id, "bad") == []
    assert open_client().get_run(run.run_id).data.tags["gate"] == "passed"
    assert status(run.run_id) == "FINISHED"


@pytest.mark.mlflow_server
def test_a_server_that_dies_holds_up_no_training_and_loses_and_doubles_no_point(
    server: Server, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunRecorder("m", {}, TAGS, flush_seconds=0.0) as run:
        run.log(0, {"loss": 1.0})
        while not history(run.run_id, "loss"):
            time.sleep(0.02)
        server.die()
        start = time.monotonic()
        for step in range(1, 1000):
            run.log(step, {"loss": 1.0 / step})
        run.log(1000, {"loss": math.nan})
        assert time.monotonic() - start < 1.0
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert sum("goes on" in record.message for record in caplog.records) <= 1
    [kept] = (store / "unsent").iterdir()
    content = kept.read_bytes()
    assert (kept.name, len(content.splitlines())) == (f"{run.run_id}.jsonl", 1001)

    server.start()
    expected = [(0, 1.0), *((step, 1.0 / step) for step in range(1, 1000))]
    assert send_unsent() == 1000
    assert (kept.exists(), status(run.run_id), history(run.run_id, "loss")) == (False, "FINISHED", expected)
    kept.write_bytes(content)
    assert (send_unsent(), send_unsent()) == (1000, 0)
    assert history(run.run_id, "loss") == expected
    assert open_client().get_run(run.run_id).data.tags["non_finite"] == "loss at step 1000"


def test_a_resumed_training_sends_what_the_interrupted_one_kept(store: Path) -> None:
    run_id = open_client().create_run(initialise_store(), tags={**TAGS, "ballast.model": "m"}).info.run_id
    header = {"run_id": run_id, "status": "KILLED", "end_time": 1, "tags": {"non_finite": "loss at step 1"}}
    (store / "unsent").mkdir()
    kept = store / "unsent" / f"{run_id}.jsonl"
    kept.write_text(f'{json.dumps(header)}\n["loss", 0.5, 2, 1700000000000]\n')
    with RunRecorder("m", {}, TAGS) as run:
        run.log(2, {"loss": 0.5})
    assert (run.run_id, kept.exists()) == (run_id, False)
    assert set(history(run_id, "loss")) == {(2, 0.5)}


def test_points_of_a_run_that_the_store_does_not_have_hold_up_no_others(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_id = open_client().create_run(initialise_store()).info.run_id
    (store / "unsent").mkdir()
    for name in ("0" * 32, run_id):
        header = {"run_id": name, "status": "KILLED", "end_time": 1, "tags": {}}
        (store / "unsent" / f"{name}.jsonl").write_text(f'{json.dumps(header)}\n["loss", 0.5, 2, 1700000000000]\n')
    assert send_unsent() == 1
    assert [path.stem for path in (store / "unsent").iterdir()] == ["0" * 32]
    assert "does not have" in caplog.text


def test_lineage_is_the_commit_and_the_hashes_of_what_was_run(tmp_path: Path) -> None:
    assert set(lineage_tags(tmp_path).values()) == {"unknown"}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert lineage_tags(tmp_path)["git.commit"] == "unknown"
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "dvc.lock").write_text("one\n")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = lineage_tags(tmp_path)
    assert (clean["git.commit"], clean["git.dirty"]) == (git("rev-parse", "HEAD"), "false")
    (tmp_path / "dvc.lock").write_text("two\n")
    running = lineage_tags(tmp_path)
    assert (running["git.dirty"], running["dvc.lock.sha256"] != clean["dvc.lock.sha256"]) == ("false", True)
    (tmp_path / "params.yaml").write_text("a: 2\n")
    edited = lineage_tags(tmp_path)
    assert (edited["git.dirty"], edited["params.sha256"] != clean["params.sha256"]) == ("true", True)
