"""Laws of the store: a fresh one may be opened by many at once, one that does not answer costs seconds."""

import socket
import sqlite3
import time
from pathlib import Path

import pytest

from components.errors import TrackingError
from components.tracking_store import hold_lock, initialise_store, open_client


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


def test_a_lock_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "lock"), pytest.raises(TrackingError, match=r"fuser .*lock"), hold_lock(tmp_path / "lock", 0.1):
        pass
    with hold_lock(tmp_path / "lock", 0.1):
        pass


def test_an_experiment_deleted_in_the_page_comes_back(store: Path) -> None:
    experiment = initialise_store()
    assert open_client().get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"
    open_client().delete_experiment(experiment)
    assert initialise_store() == experiment
    open_client().create_run(experiment)


def test_a_file_that_is_no_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db").write_text("a diary, not a database " * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db.*not a database"):
        initialise_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db/below/mlflow.db")
    with pytest.raises(TrackingError, match="see that its folder can be written"):
        initialise_store()
