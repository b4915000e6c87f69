"""Laws of what the flows call."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from components.artifacts import ROOT
from components.tracking import RunRecorder, find_run, log_evaluation, log_final, record_training
from components.tracking_store import open_client
from tests.components.mlflow_stores import history, status
from tests.components.test_tracking_publish import evaluation_of

TAGS = {"ballast.fingerprint": "f1"}


def test_importing_imports_no_mlflow() -> None:
    code = "import sys, components.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_final_metrics_are_appended_once_to_a_run_that_ended(store: Path) -> None:
    with RunRecorder("m", {}, TAGS) as run:
        pass
    for _ in range(2):
        log_final(run.run_id, {"ood.accuracy": 0.75, "bad": math.nan}, {"gate": "passed"})
    assert history(run.run_id, "ood.accuracy") == [(0, 0.75)]
    assert history(run.run_id, "bad") == []
    assert open_client().get_run(run.run_id).data.tags["gate"] == "passed"
    assert status(run.run_id) == "FINISHED"


def test_a_training_and_its_evaluation_are_one_run_under_the_pipeline(store: Path) -> None:
    with record_training("sft", 0, "f1", {"training": {"learning_rate": 0.1}}) as run:
        run.log(1, {"nll": 0.5})
    for _ in range(2):
        log_evaluation(evaluation_of("sft-0"), "f1", {"in_domain_accuracy": 0.9})
    logged = open_client().get_run(run.run_id)
    assert find_run("sft-0", "f1") == run.run_id
    assert logged.data.params == {"preset": "sft", "seed": "0", "training.learning_rate": "0.1"}
    assert logged.data.tags["mlflow.parentRunId"] == run.parent_id
    assert history(run.run_id, "in_domain_accuracy") == history(run.run_id, "in_domain/accuracy") == [(0, 0.9)]
    assert len(logged.outputs.model_outputs) == 1


def test_an_evaluation_without_a_store_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    log_evaluation(evaluation_of("sft-0"), "f1", {"in_domain_accuracy": 0.9})
    assert "only in artifacts/evaluations" in caplog.text
