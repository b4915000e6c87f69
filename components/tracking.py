"""MLflow runs: the recorder that training writes to, the points that a dead server did not take, and where a run came from.

Training never waits for a server: points are buffered, sent by a thread of their own, and kept in a file when nobody takes them.
To send a point twice is harmless: MLflow's key of a point is (run, metric, time, step, value).
"""

import hashlib
import json
import logging
import math
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from components.artifacts import ROOT, WORK, write_text
from components.errors import InterruptedStageError, TrackingError
from components.tracking_store import answers_in_time, initialise_store, open_client, store_errors, tracking_errors, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "RunRecorder",
    "find_run",
    "initialise_store",
    "lineage_tags",
    "log_evaluation",
    "log_final",
    "record_training",
    "send_unsent",
    "tracking_uri",
]
MODEL_TAG = "ballast.model"
FINGERPRINT_TAG = "ballast.fingerprint"
UNSENT = WORK / "unsent_metrics"
ITEMS_PER_CALL = 900
"""MLflow takes 1,000 metrics and tags in one call."""

logger = logging.getLogger(__name__)


class Point(NamedTuple):
    key: str
    value: float
    step: int
    milliseconds: int


def find_run(name: str, fingerprint: str) -> str | None:
    """The newest run of this model and fingerprint."""
    experiment = initialise_store()
    with tracking_errors(f"Looking for the run of {name}"):
        wanted = f"tags.`{MODEL_TAG}` = '{name}' and tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
        runs = open_client().search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
        return str(runs[0].info.run_id) if runs else None


def log_final(run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Append to a run, ended or not. A metric that has this value already is not written again."""
    initialise_store()
    with tracking_errors(f"Writing to run {run_id}"):
        client = open_client()
        known = client.get_run(run_id).data.metrics
        points, bad = _points(0, {key: value for key, value in metrics.items() if known.get(key) != value})
        _send(client, run_id, points, {**tags, **({"non_finite": ", ".join(bad)} if bad else {})})


class RunRecorder:
    """One MLflow run of one training: `with RunRecorder(name, params, tags) as run: run.log(step, {"loss": 0.3})`.

    A run of the same name and `ballast.fingerprint` that did not end FINISHED is gone on with; what it holds is not sent twice.
    Entering needs the store (TrackingError within 10 s); from then on nothing here raises or holds up the training.
    """

    def __init__(self, name: str, params: Mapping[str, object], tags: Mapping[str, str], *, flush_seconds: float = 30.0) -> None:
        self.name = name
        self.run_id = ""
        self._params = flatten(params)
        self._tags = {**tags, MODEL_TAG: name}
        self._flush_seconds = flush_seconds
        self._resumed = False
        self._points: list[Point] = []
        self._new_tags: dict[str, str] = {}
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._warned = False
        self._adding, self._sending = threading.Lock(), threading.Lock()
        self._sender = threading.Thread(target=self.flush, daemon=True)

    def __enter__(self) -> Self:
        experiment = initialise_store()
        found = find_run(self.name, self._tags[FINGERPRINT_TAG]) if FINGERPRINT_TAG in self._tags else None
        with tracking_errors(f"Starting the run of {self.name}"):
            self._client = open_client()
            self._resumed = found is not None and self._client.get_run(found).info.status != "FINISHED"
            if found is not None and self._resumed:
                self.run_id = found
                self._client.update_run(found, status="RUNNING")
                _send(self._client, found, [], self._tags)
                if self._file.exists():
                    self._points, header = _read_unsent(self._file)
                    self._new_tags = header["tags"]
            else:
                self.run_id = self._client.create_run(experiment, tags=self._tags, run_name=self.name).info.run_id
            self._log_params()
        self._last_flush = time.monotonic()
        return self

    @property
    def _file(self) -> Path:
        return UNSENT / f"{self.run_id}.jsonl"

    def _log_params(self) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = [Param(key, value) for key, value in self._params.items() if key not in known]
        for start in range(0, len(new), 100):
            self._client.log_batch(self.run_id, params=new[start : start + 100])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Buffer. Values that are not finite become a count, `non_finite`, at that step and a tag that names the first one."""
        points, bad = _points(step, metrics)
        with self._adding:
            self._points += points
            if bad:
                self._new_tags.setdefault("non_finite", f"{bad[0]} at step {step}")
        if not self._sender.is_alive() and time.monotonic() - self._last_flush >= self._flush_seconds:
            self._last_flush = time.monotonic()
            self._sender = threading.Thread(target=self.flush, daemon=True)
            self._sender.start()

    def flush(self) -> bool:
        """Send what is buffered; False when the store did not take it all (the rest stays buffered)."""
        try:
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
                _send(self._client, self.run_id, self._not_there_yet(batch), tags)
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
        stopped = (KeyboardInterrupt, SystemExit, InterruptedStageError)
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, stopped) else "FAILED"
        ended = time.time_ns() // 1_000_000

        def finish() -> None:
            self._send_all()
            self._client.set_terminated(self.run_id, status, ended)

        if answers_in_time(finish):
            self._file.unlink(missing_ok=True)
            return
        header = {"run_id": self.run_id, "status": status, "end_time": ended, "tags": self._new_tags}
        points = list(self._points)
        try:
            write_text(self._file, "".join(json.dumps(line) + "\n" for line in (header, *points)))
            logger.warning("%d points are kept in %s. Send them: python -m components.tracking", len(points), self._file)
        except OSError as failure:
            logger.warning("%d points of run %s are lost: %s", len(points), self.run_id, failure)


def record_training(preset: str, seed: int, fingerprint: str, params: Mapping[str, object]) -> RunRecorder:
    """The run of one cell of the grid, named after it; found again by its fingerprint when a killed training goes on."""
    name = f"{preset}-{seed}"
    tags = {MODEL_TAG: name, FINGERPRINT_TAG: fingerprint, "ballast.preset": preset, **lineage_tags()}
    return RunRecorder(name, {"preset": preset, "seed": seed, **params}, tags)


def log_evaluation(name: str, fingerprint: str, metrics: Mapping[str, float]) -> None:
    """Final figures beside the curves of the run that trained the model. No run or no server: a warning, the file has them."""
    try:
        run_id = find_run(name, fingerprint)
        if run_id is not None:
            log_final(run_id, metrics, {})
    except TrackingError as error:
        logger.warning("The figures of %s are not in MLflow, only in artifacts/evaluations: %s", name, error)


def send_unsent() -> int:
    """Send what earlier runs had to keep, and how they ended; the number of points. Half done or done twice does no harm."""
    experiment = initialise_store()
    num_points = 0
    for path in sorted(UNSENT.glob("*.jsonl")):
        points, header = _read_unsent(path)
        with tracking_errors(f"Sending {path}"):
            client = open_client()
            if not client.search_runs([experiment], f"attributes.run_id = '{header['run_id']}'", max_results=1):
                logger.warning("%s belongs to a run that this store does not have. Remove it if that store is gone", path)
                continue
            for start in range(0, max(len(points), 1), ITEMS_PER_CALL):
                _send(client, header["run_id"], points[start : start + ITEMS_PER_CALL], header["tags"])
            client.set_terminated(header["run_id"], header["status"], header["end_time"])
        path.unlink()
        num_points += len(points)
    return num_points


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """`{"lora": {"rank": 8}}` → `{"lora.rank": "8"}`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def lineage_tags(root: Path = ROOT) -> dict[str, str]:
    """What makes a run repeatable. dvc.lock, which a running pipeline rewrites, does not count as dirt: its hash is here."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock")
    return {
        "git.commit": commit or "unknown",
        "git.dirty": "unknown" if commit is None or changes is None else str(bool(changes)).lower(),
        "dvc.lock.sha256": _sha256(root / "dvc.lock"),
        "params.sha256": _sha256(root / "params.yaml"),
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "unknown"


def _points(step: int, metrics: Mapping[str, float]) -> tuple[list[Point], list[str]]:
    now = time.time_ns() // 1_000_000
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    finite = {key: float(value) for key, value in metrics.items() if key not in bad}
    if bad:
        finite["non_finite"] = float(len(bad))
    return [Point(key, value, step, now) for key, value in finite.items()], bad


def _send(client: "MlflowClient", run_id: str, points: list[Point], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Metric, RunTag

    metrics = [Metric(point.key, point.value, point.milliseconds, point.step) for point in points]
    client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])


def _read_unsent(path: Path) -> tuple[list[Point], dict[str, Any]]:
    header, *points = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Point(*point) for point in points], header


if __name__ == "__main__":
    print(f"{send_unsent()} points sent")
