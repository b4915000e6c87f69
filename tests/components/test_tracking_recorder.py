"""Laws of the recorder: a dead server costs seconds and never a point, a resumed training goes on in its run."""

import contextlib
import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.artifacts import ROOT
from components.errors import InterruptedStageError
from components.tracking_models import Dataset
from components.tracking_points import FINGERPRINT_TAG
from components.tracking_recorder import RunRecorder, find_run, send_unsent
from components.tracking_store import initialise_store, open_client
from tests.components.mlflow_stores import Server, history, status

TAGS = {FINGERPRINT_TAG: "f1"}


@pytest.mark.parametrize("num_processes", [4, 8])
def test_many_processes_on_a_fresh_store_share_one_experiment_and_one_parent(tmp_path: Path, num_processes: int) -> None:
    """They are forked after the imports, so that they meet at the database and not one by one."""
    code = """
import multiprocessing, sys
import mlflow.store.tracking.sqlalchemy_store
from components.tracking import RunRecorder
def record(index):
    with RunRecorder(f"m-{index}", {}, {}, lineage={"params.sha256": "p", "git.commit": "c"}) as run: run.log(1, {"loss": 1.0})
running = [multiprocessing.get_context("fork").Process(target=record, args=(index,)) for index in range(int(sys.argv[1]))]
for process in running: process.start()
for process in running: process.join()
sys.exit(str([process.exitcode for process in running]) if any(process.exitcode for process in running) else 0)
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(num_processes)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (num_processes,)
        parents = database.execute("select value, count(*) from tags where key = 'mlflow.parentRunId' group by value").fetchall()
        assert [number for _, number in parents] == [num_processes]
        assert database.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone() == (num_processes + 1,)
        artifacts = database.execute("select artifact_location from experiments where name = 'Ballast'").fetchall()
    assert artifacts == [(f"{tmp_path}/new/artifacts",)]
    assert not list((tmp_path / "new").glob(".*new-*"))


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


def test_a_database_locked_in_mid_run_costs_ten_seconds_at_most_and_no_point(store: Path) -> None:
    with RunRecorder("m", {}, TAGS) as run:
        run.log(1, {"loss": 0.5})
        assert run.flush()
        holder = sqlite3.connect(store / "mlflow.db")
        holder.execute("BEGIN EXCLUSIVE")
        run.log(2, {"loss": 0.25})
        start = time.monotonic()
    assert time.monotonic() - start < 10
    holder.close()
    assert send_unsent() == 1
    assert (history(run.run_id, "loss"), status(run.run_id)) == ([(1, 0.5), (2, 0.25)], "FINISHED")


@pytest.mark.mlflow_server
def test_what_a_dead_server_did_not_take_makes_the_run_that_a_living_one_would_have(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves, system metrics, status, end and the LoggedModel; only ids and times differ."""
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    runs = []
    for dies in (False, True):
        with RunRecorder("twin", {"a": 1}, {FINGERPRINT_TAG: f"twin-{dies}"}) as run:
            if dies:
                server.die()
            for step in range(2500):
                run.log(step, {"loss": 1 / (step + 1)})
            run.refer_to_model()
        if dies:
            assert len(list((store / "unsent").iterdir())) == 1
            server.start()
            assert send_unsent() > 2500
        runs.append(open_client().get_run(run.run_id))
    lived, died = runs
    assert history(lived.info.run_id, "loss") == history(died.info.run_id, "loss") == [(s, 1 / (s + 1)) for s in range(2500)]
    assert lived.data.metrics.keys() == died.data.metrics.keys() >= {"loss", "system/cpu_utilization_percentage"}
    assert (lived.info.status, lived.data.params) == (died.info.status, died.data.params) == ("FINISHED", {"a": "1"})
    assert died.info.end_time - died.info.start_time < 60_000
    assert [len(run.outputs.model_outputs) for run in runs] == [1, 1]


def test_a_run_stands_under_its_pipeline_and_says_when_it_fails(store: Path) -> None:
    lineage = {"params.sha256": "p", "git.commit": "c"}
    with RunRecorder("a", {}, {FINGERPRINT_TAG: "a"}, lineage=lineage) as first:
        assert status(first.parent_id) == "RUNNING"
    assert status(first.parent_id) == "RUNNING"  # other models follow; publishing ends it
    with pytest.raises(ValueError, match="stop"), RunRecorder("b", {}, {FINGERPRINT_TAG: "b"}, lineage=lineage) as second:
        raise ValueError("stop")
    assert (second.parent_id, status(first.parent_id)) == (first.parent_id, "FAILED")
    with RunRecorder("b", {}, {FINGERPRINT_TAG: "b"}, lineage={**lineage, "git.commit": "d"}) as resumed:
        assert resumed.run_id == second.run_id
        assert resumed.parent_id != first.parent_id
        tags = open_client().get_run(resumed.run_id).data.tags
        assert (tags["mlflow.parentRunId"], tags["git.commit"]) == (resumed.parent_id, "d")
        assert status(resumed.parent_id) == "RUNNING"


def test_a_training_says_what_it_was_trained_on_and_where_its_weights_are(store: Path) -> None:
    datasets = [Dataset("train", "f" * 40, "artifacts/data/train.arrow", 240)]
    for _ in range(2):
        with contextlib.suppress(InterruptedStageError), RunRecorder("m", {"a": 1}, TAGS, datasets=datasets) as run:
            run.refer_to_model()
            raise InterruptedStageError
    logged = open_client().get_run(run.run_id)
    [used] = logged.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("train", "f" * 36, "training")
    assert json.loads(used.dataset.source) == {"uri": "artifacts/data/train.arrow"}
    [output] = logged.outputs.model_outputs
    model = open_client().get_logged_model(output.model_id)
    assert (model.name, model.source_run_id, str(model.status), model.params) == ("m", run.run_id, "READY", {"a": "1"})
    assert model.tags.items() >= {"ballast.path": "artifacts/models/m", "ballast.fingerprint": "f1"}.items()
    assert open_client().list_logged_model_artifacts(output.model_id) == []
