"""Where the MLflow runs and models live: a local database by default, or the server that MLFLOW_TRACKING_URI names.

MLflow is imported at first use, so that importing this module costs nothing.
"""

import fcntl
import http.client
import os
import re
import sqlite3
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.artifacts import ROOT, WORK, write_json
from components.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "Ballast"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Which pages MLflow shows of the experiment: runs, models and their comparison, and not those for prompts and agents."""
PATIENCE_SECONDS = 8.0
"""How long anybody waits for a store that does not answer."""
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
REFUSED = re.compile(r"error code (401|403)\b")
"""A server with authentication: no account, or one that may not."""


def tracking_uri() -> str:
    """Where the store is. A user and password in a server's address move to the variables that MLflow reads them from, too:
    MLflow prints and records the address it was given.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT}/mlruns/mlflow.db"
    credentials, separator, _ = urlsplit(uri).netloc.rpartition("@")
    if not separator or not uri.startswith(("http://", "https://")):
        return uri
    for name, value in zip(("USERNAME", "PASSWORD"), credentials.partition(":")[::2], strict=True):
        os.environ.setdefault(f"MLFLOW_TRACKING_{name}", unquote(value))
    uri = os.environ["MLFLOW_TRACKING_URI"] = uri.replace(f"{credentials}@", "", 1)
    return uri


def open_client(uri: str | None = None) -> "MlflowClient":
    """A client of the store. Call `initialise_store` before: a client that finds no database makes one, and races."""
    _set_environment()
    import mlflow

    if uri is None:
        mlflow.set_tracking_uri(tracking_uri())  # `models:/…` sources are resolved through the global one, not the client's
    return mlflow.MlflowClient(uri or tracking_uri())


def note_run(name: str, experiment: str, run_id: str) -> None:
    """Write down where the newest run of that name is (`pipeline`: the parent), for links in other UIs; no stage reads it."""
    write_json(WORK / "mlflow_runs" / f"{name}.json", {"experiment": experiment, "run": run_id})


@contextmanager
def tracking_errors(doing: str) -> Iterator[None]:
    """Turn what MLflow, its HTTP client and its database raise into one TrackingError that names the store and the repair."""
    try:
        yield
    except store_errors() as error:
        reason = _without_password((str(error).strip() or type(error).__name__).splitlines()[0][:400])
        repair = "Close what holds the database, see that its folder can be written, or name another store: MLFLOW_TRACKING_URI"
        if local_database(tracking_uri()) is None:
            repair = "Start that server (infra/README.md), or unset MLFLOW_TRACKING_URI to use the local store"
        if REFUSED.search(reason):
            repair = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that may do this (docs/security.md)"
        raise TrackingError(
            f"{doing}: the MLflow store {_without_password(tracking_uri())} cannot be used ({reason}). {repair}"
        ) from error


@contextmanager
def hold_lock(path: Path, wait_seconds: float = 120.0) -> Iterator[None]:
    """Hold a file lock of this machine. The kernel frees the lock of a process that dies; the file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + wait_seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise TrackingError(f"{path} is locked since {wait_seconds:.0f} s. See by whom: fuser {path}") from None
                time.sleep(0.05)
        yield


def tracking_lock(purpose: str) -> Path:
    """What the processes of this machine that write to the same store agree on: beside a local database, else under .work."""
    database = local_database(tracking_uri())
    return WORK / f"tracking.{purpose}.lock" if database is None else database.with_name(f".{database.name}.{purpose}.lock")


def initialise_store() -> str:
    """The id of the experiment, in a store that is made if there is none. Safe for many processes at once.

    A new database is built under another name and renamed when whole: MLflow's own start races with itself, and a killed one
    stays half migrated for ever.
    """
    database = local_database(tracking_uri())
    with tracking_errors("Opening"):
        if database is None:
            _probe_server(tracking_uri())
            return _experiment(open_client(), None)
        artifacts = str(database.resolve().parent / "artifacts")
        if not database.exists():
            with hold_lock(database.with_name(f".{database.name}.lock")):
                if not database.exists():
                    _make_database(database, artifacts)
        with closing(sqlite3.connect(database, timeout=PATIENCE_SECONDS / 2)) as connection:
            connection.execute("BEGIN IMMEDIATE")
        return _experiment(open_client(), artifacts)


def answers_in_time(call: Callable[[], object]) -> bool:
    """Whether the call ended well within PATIENCE_SECONDS; one that needs longer is left to its thread."""
    done: list[object] = []

    def run() -> None:
        with suppress(*store_errors()):
            done.append(call())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return bool(done)


def store_errors() -> tuple[type[Exception], ...]:
    _set_environment()
    from mlflow.exceptions import MlflowException

    errors: tuple[type[Exception], ...] = (MlflowException, OSError, sqlite3.Error, http.client.HTTPException)
    with suppress(ImportError):  # mlflow-skinny has no databases
        from alembic.util.exc import CommandError
        from sqlalchemy.exc import SQLAlchemyError

        errors += (CommandError, SQLAlchemyError)
    return errors


def _set_environment() -> None:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def local_database(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def _without_password(text: str) -> str:
    """The text without the user and password that the store's URI may hold."""
    credentials, separator, _ = urlsplit(tracking_uri()).netloc.rpartition("@")
    return text.replace(credentials + separator, "") if separator else text


def _probe_server(uri: str) -> None:
    """Raise soon when nobody answers; MLflow alone would try for much longer. Any answer at all is MLflow's to judge."""
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{_without_password(uri).rstrip('/')}/health", timeout=PATIENCE_SECONDS / 2).close()
        except urllib.error.HTTPError:
            return
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):
                raise


def _make_database(database: Path, artifacts: str) -> None:
    for left_by_a_killed_process in database.parent.glob(f".{database.name}.new-*"):
        left_by_a_killed_process.unlink()
    new = database.with_name(f".{database.name}.new-{time.time_ns()}")
    _experiment(open_client(f"sqlite:///{new}"), artifacts)
    os.replace(new, database)


def _experiment(client: "MlflowClient", artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags={KIND_TAG: KIND})
        except MlflowException:  # another machine was faster
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if KIND_TAG not in found.tags:
        client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    at_home = tracking_uri().startswith(f"sqlite:///{ROOT}/mlruns/")
    if at_home and str(found.artifact_location).startswith("mlflow-artifacts:"):
        raise TrackingError(
            "mlruns/ was begun by an MLflow server that keeps its artifacts, and only that server can give them: name it "
            "(`make up`, then export MLFLOW_TRACKING_URI=http://127.0.0.1:5000), or begin anew: rm -r mlruns/*"
        )
    if at_home and artifacts is not None and found.artifact_location != artifacts:
        raise TrackingError(f"mlruns/ was moved here from {found.artifact_location}. Move it back, or begin anew: rm -r mlruns/*")
    return str(found.experiment_id)
