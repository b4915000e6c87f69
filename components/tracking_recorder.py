"""The recorder that training writes to.

Training never waits for a server: points are buffered, sent by a thread of their own, and kept in a file when nobody takes them.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from components.errors import InterruptedStageError, TrackingError
from components.tracking_kept import describe_kept, is_kept_whole, make_run
from components.tracking_models import Dataset, log_datasets, refer_to_model
from components.tracking_parent import open_parent, set_running, source_tags
from components.tracking_points import (
    FINGERPRINT_TAG,
    ITEMS_PER_CALL,
    MODEL_TAG,
    PARENT_TAG,
    Point,
    flatten,
    keep_unsent,
    make_points,
    read_unsent,
    send_params,
    send_points,
    unsent_file,
    unsent_files,
)
from components.tracking_store import (
    answers_in_time,
    initialise_store,
    local_database,
    note_run,
    open_client,
    store_errors,
    tracking_errors,
    tracking_uri,
)
from components.tracking_system import SystemSampler

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


def find_run(name: str, fingerprint: str) -> str | None:
    """The newest run of this model and fingerprint."""
    experiment = initialise_store()
    with tracking_errors(f"Looking for the run of {name}"):
        return newest_run(open_client(), experiment, name, fingerprint)


def newest_run(client: "MlflowClient", experiment: str, name: str, fingerprint: str) -> str | None:
    wanted = f"tags.`{MODEL_TAG}` = '{name}' and tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
    runs = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return str(runs[0].info.run_id) if runs else None


class RunRecorder:
    """One MLflow run of one training: `with RunRecorder(name, params, tags) as run: run.log(step, {"loss": 0.3})`.

    A run of the same name and `ballast.fingerprint` that did not end FINISHED is gone on with; what it holds is not sent twice.
    With `lineage` it stands under the run of its pipeline. A server that does not answer or refuses us costs 10 s at most and one
    warning, at the start too: then all is kept in a file. A local database that cannot be used is a TrackingError at the start.
    """

    def __init__(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        *,
        lineage: Mapping[str, str] | None = None,
        datasets: Sequence[Dataset] = (),
        flush_seconds: float = 30.0,
    ) -> None:
        self.name = name
        self.run_id = ""
        self.parent_id = ""
        self._params = flatten(params)
        self._tags = {**({**lineage, **source_tags(lineage)} if lineage else {}), **tags, MODEL_TAG: name}
        self._lineage, self._datasets = lineage, list(datasets)
        self._flush_seconds = flush_seconds
        self._resumed = False
        self._points: list[Point] = []
        self._new_tags: dict[str, str] = {}
        self._has_model = False
        self._kept: dict[str, Any] | None = None  # the header of a run that no server has
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._warned = False
        self._adding, self._sending = threading.Lock(), threading.Lock()
        self._sender = threading.Thread(target=self.flush, daemon=True)

    def __enter__(self) -> Self:
        try:
            started_at = self._start()
        except TrackingError as error:
            if local_database(tracking_uri()) is not None:
                raise
            started_at = time.time() if self.run_id else self._keep_here(error)
        self._last_flush = time.monotonic()
        self._system = SystemSampler(self.log, started_at)
        self._system.start()
        return self

    def _start(self) -> float:
        """Begin the run, or go on with it; when it began, in seconds since 1970."""
        experiment = initialise_store()
        found = find_run(self.name, self._tags[FINGERPRINT_TAG]) if FINGERPRINT_TAG in self._tags else None
        with tracking_errors(f"Starting the run of {self.name}"):
            self._client = open_client()
            if self._lineage is not None:
                self.parent_id = self._tags[PARENT_TAG] = open_parent(self._client, experiment, self._lineage)
                set_running(self._client, self.parent_id)
            self._open_run(experiment, found)
            note_run(self.name, experiment, self.run_id)
            send_params(self._client, self.run_id, self._params)
            log_datasets(self._client, self.run_id, self._datasets, "training")
            return float(self._client.get_run(self.run_id).info.start_time / 1000)

    def _keep_here(self, error: TrackingError) -> float:
        """No run, only a file of this machine: written again at every flush, so that a killed training leaves its curve."""
        self._kept = describe_kept(self.name, self._params, self._tags, self._lineage, self._datasets)
        self.run_id = self.parent_id = ""
        self._new_tags, self._points = {}, []
        path = self._write_kept()
        logger.warning("%s. This training is recorded in %s; send it later: python -m components.tracking", error, path)
        return float(self._kept["start_time"] / 1000)

    def _write_kept(self) -> Path:
        assert self._kept is not None
        with self._adding:
            header, points = {**self._kept, "tags": dict(self._new_tags)}, list(self._points)
        return keep_unsent(header, points)

    def _open_run(self, experiment: str, found: str | None) -> None:
        self._resumed = found is not None and self._client.get_run(found).info.status != "FINISHED"
        if found is None or not self._resumed:
            self.run_id = self._client.create_run(experiment, tags=self._tags, run_name=self.name).info.run_id
            return
        self.run_id = found
        self._client.update_run(found, status="RUNNING")
        send_points(self._client, found, [], self._tags)
        kept = unsent_file(found)
        if kept.exists():
            self._points, header = read_unsent(kept)
            self._new_tags = header["tags"]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Buffer. Values that are not finite become a count, `non_finite`, at that step and a tag that names the first one."""
        points, bad = make_points(step, metrics)
        with self._adding:
            self._points += points
            if bad:
                self._new_tags.setdefault("non_finite", f"{bad[0]} at step {step}")
        if not self._sender.is_alive() and time.monotonic() - self._last_flush >= self._flush_seconds:
            self._last_flush = time.monotonic()
            self._sender = threading.Thread(target=self.flush, daemon=True)
            self._sender.start()

    def refer_to_model(self) -> None:
        """The training has left a model: when the run ends, make its LoggedModel, which says where the weights lie."""
        self._has_model = True

    def flush(self) -> bool:
        """Send what is buffered; False when the store did not take it all (the rest stays buffered)."""
        try:
            if self._kept is not None:
                with self._sending:
                    self._write_kept()
                return False
            self._send_all()
        except store_errors() as error:
            if not self._warned:
                logger.warning("MLflow does not answer; the training goes on and its metrics are kept: %s", str(error)[:200])
            self._warned = True
            return False
        return True

    def _send_all(self) -> None:
        with self._sending:
            while self._points or self._new_tags:
                batch, tags = self._points[:ITEMS_PER_CALL], dict(self._new_tags)
                send_points(self._client, self.run_id, self._not_there_yet(batch), tags)
                with self._adding:
                    del self._points[: len(batch)]
                    self._new_tags = {key: value for key, value in self._new_tags.items() if key not in tags}

    def _not_there_yet(self, points: list[Point]) -> list[Point]:
        """A resumed training repeats the steps after its last checkpoint: leave out what the run has (same step, same value)."""
        if self._resumed:
            for key in {point.key for point in points} - self._known.keys():
                self._known[key] = {(metric.step, metric.value) for metric in self._client.get_metric_history(self.run_id, key)}
        return [point for point in points if (point.step, point.value) not in self._known.get(point.key, ())]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._system.stop()
        stopped = (KeyboardInterrupt, SystemExit, InterruptedStageError)
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, stopped) else "FAILED"
        header = {"run_id": self.run_id, "status": status, "end_time": time.time_ns() // 1_000_000, "has_model": self._has_model}
        if self._kept is not None:
            self._kept = {**self._kept, **header, "run_id": self._kept["run_id"]}
            self.flush()
            return

        def finish() -> None:
            self._send_all()
            end_run(self._client, header)
            if self.parent_id and status != "FINISHED":
                self._client.set_terminated(self.parent_id, status)

        if answers_in_time(finish):
            unsent_file(self.run_id).unlink(missing_ok=True)
            return
        points = list(self._points)
        try:
            path = keep_unsent({**header, "tags": self._new_tags}, points)
            logger.warning("%d points are kept in %s. Send them: python -m components.tracking", len(points), path)
        except OSError as failure:
            logger.warning("%d points of run %s are lost: %s", len(points), self.run_id, failure)


def end_run(client: "MlflowClient", header: Mapping[str, Any]) -> None:
    """How the run ended, and the LoggedModel of what it left. Done twice does no harm."""
    if header.get("has_model"):
        refer_to_model(client, header["run_id"], {})
    client.set_terminated(header["run_id"], header["status"], header["end_time"])


def send_unsent() -> int:
    """Send what earlier runs had to keep, and how they ended; the number of points. Half done or done twice does no harm."""
    experiment = initialise_store()
    num_points = 0
    for path in unsent_files():
        points, header = read_unsent(path)
        with tracking_errors(f"Sending {path}"):
            client = open_client()
            if is_kept_whole(header):
                header = {**header, "run_id": make_run(client, experiment, header)}
            elif not client.search_runs([experiment], f"attributes.run_id = '{header['run_id']}'", max_results=1):
                logger.warning("%s belongs to a run that this store does not have. Remove it if that store is gone", path)
                continue
            send_points(client, header["run_id"], points, header["tags"])
            end_run(client, header)
        path.unlink()
        num_points += len(points)
    return num_points
