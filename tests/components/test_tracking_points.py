"""Laws of points: what is not finite is never stored, nothing is longer or more than MLflow takes."""

import math
import sqlite3
from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name

from components.tracking_points import make_points, metric_key, send_params, send_points
from components.tracking_store import initialise_store, open_client
from tests.components.mlflow_stores import Server, history


def test_what_is_not_finite_is_counted_and_named() -> None:
    points, bad = make_points(3, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    assert [(point.key, point.value, point.step) for point in points] == [("d", 1.0, 3), ("non_finite", 3.0, 3)]
    assert bad == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ood/boolq/accuracy", "ood/boolq/accuracy"),
        ("ood/lm_eval/mmlu,5-shot (all)/nll", "ood/lm_eval/mmlu_5-shot _all_/nll"),
        ("a//b/../c", "a/_/b/_/c"),
        ("ärger=1", "ärger_1"),
        ("x" * 300, "x" * 250),
    ],
)
def test_the_name_of_a_set_makes_a_name_that_mlflow_takes(name: str, expected: str) -> None:
    assert metric_key(name) == expected
    _validate_metric_name(metric_key(name))


@pytest.mark.mlflow_server
def test_no_number_and_no_length_is_too_much(server: Server, store: Path) -> None:
    client = open_client()
    run_id = client.create_run(initialise_store()).info.run_id
    points = [make_points(step, {"x" * 240: step / 7})[0][0] for step in range(10_000)]
    send_points(client, run_id, points, {f"tag{index}": "ä" * 9000 for index in range(150)})
    send_params(client, run_id, {f"param{index}": "p" * 7000 for index in range(250)})
    data = client.get_run(run_id).data
    assert history(run_id, "x" * 240) == [(step, step / 7) for step in range(10_000)]
    assert {len(value) for key, value in data.tags.items() if key.startswith("tag")} == {8000}
    assert (len(data.params), {len(value) for value in data.params.values()}) == (250, {6000})


def test_no_infinity_reaches_the_database(store: Path) -> None:
    client = open_client()
    run_id = client.create_run(initialise_store()).info.run_id
    send_points(client, run_id, make_points(0, {"a": math.inf, "b": math.nan, "c": 2.0})[0], {})
    with sqlite3.connect(store / "mlflow.db") as database:
        assert sorted(database.execute("select key, value, is_nan from metrics")) == [("c", 2.0, 0), ("non_finite", 2.0, 0)]
