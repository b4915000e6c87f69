"""What an MLflow run takes: points of curves, tags and params, within MLflow's limits; and the file that keeps points.

To send a point twice is harmless: MLflow's key of a point is (run, metric, time, step, value).
"""

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.artifacts import WORK, write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_TAG = "ballast.model"
FINGERPRINT_TAG = "ballast.fingerprint"
PARENT_TAG = "mlflow.parentRunId"
UNSENT = WORK / "unsent_metrics"
ITEMS_PER_CALL = 900
"""MLflow takes 1,000 metrics and tags in one call, and 1 MB: 900 points with their data set and model are half of it."""
TAGS_PER_CALL = 100
MAX_TAG_LENGTH, MAX_PARAM_LENGTH, MAX_KEY_LENGTH = 8000, 6000, 250


class Point(NamedTuple):
    key: str
    value: float
    step: int
    milliseconds: int


def make_points(step: int, metrics: Mapping[str, float]) -> tuple[list[Point], list[str]]:
    """The finite values as points, with the number of the others as `non_finite`; and the names of the others.

    MLflow's databases would show an infinity as 1.8e308 and may show nan as 0.
    """
    now = time.time_ns() // 1_000_000
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    finite = {metric_key(key): float(value) for key, value in metrics.items() if key not in bad}
    if bad:
        finite["non_finite"] = float(len(bad))
    return [Point(key, value, step, now) for key, value in finite.items()], bad


def metric_key(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. :/`, no empty or dotted part; unequal names may become equal."""
    parts = [re.sub(r"[^\w\-. :]", "_", part) for part in name.split("/")]
    return "/".join(re.sub(r"^\.+$", "_", part) or "_" for part in parts)[:MAX_KEY_LENGTH]


def send_points(client: "MlflowClient", run_id: str, points: Sequence[Point], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Metric

    send_metrics(client, run_id, [Metric(point.key, point.value, point.milliseconds, point.step) for point in points], tags)


def send_metrics(client: "MlflowClient", run_id: str, metrics: Sequence[Any], tags: Mapping[str, str]) -> None:
    """Metrics of MLflow's own kind, in as many calls as they need; the tags go with the first."""
    from mlflow.entities import RunTag

    run_tags = [RunTag(key, cut(value, MAX_TAG_LENGTH)) for key, value in tags.items()]
    for start in range(0, len(run_tags), TAGS_PER_CALL):
        client.log_batch(run_id, tags=run_tags[start : start + TAGS_PER_CALL])
    for start in range(0, len(metrics), ITEMS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + ITEMS_PER_CALL])


def send_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Params that the run does not have yet; MLflow refuses to change one."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(key, cut(value, MAX_PARAM_LENGTH)) for key, value in params.items() if key not in known]
    for start in range(0, len(new), TAGS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + TAGS_PER_CALL])


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """`{"lora": {"rank": 8}}` → `{"lora.rank": "8"}`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def unsent_file(run_id: str) -> Path:
    return UNSENT / f"{run_id}.jsonl"


def unsent_files() -> list[Path]:
    return sorted(UNSENT.glob("*.jsonl"))


def keep_unsent(header: Mapping[str, Any], points: Iterable[Point]) -> Path:
    """Write down what the store did not take: one line of what the run is and how it ended, one line a point."""
    path = unsent_file(header["run_id"])
    write_text(path, "".join(json.dumps(line) + "\n" for line in (header, *points)))
    return path


def read_unsent(path: Path) -> tuple[list[Point], dict[str, Any]]:
    header, *points = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Point(*point) for point in points], header
