"""Laws of publishing: all models are children of the pipeline run, the parent has the verdict, and twice is once."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from components import tracking_models, tracking_publish
from components.errors import TrackingError
from components.tracking import RunRecorder
from components.tracking_parent import lineage_tags
from components.tracking_publish import gate_tags, publish_comparison
from components.tracking_store import open_client
from components.tracking_tables import answers_table, calibration_figure, comparison_tables
from tests.components.mlflow_stores import Server

METRICS = ("accuracy", "nll", "ece", "brier", "aurc", "excess_aurc", "drift_kl", "exact_match", "prompt_drift_kl")


def evaluation_of(model: str, accuracy: float = 0.9, ood: float = 0.5) -> dict[str, Any]:
    preset, _, seed = model.partition("-")
    sets = {"validation": accuracy, "in_domain": accuracy, "ood/boolq": ood, "base_text": ood}
    return {
        "model": model,
        "preset": preset,
        "seed": int(seed) if seed else None,
        "model_fingerprint": f"weights of {model}",
        "sets": {name: set_of(name, value) for name, value in sets.items()},
    }


def set_of(name: str, value: float) -> dict[str, Any]:
    answers = {"answer": "7 eggs", "expected": "8", "exact_match": 0} if name == "in_domain" else {"answer": None}
    return {
        "task": "tokens",
        "num_items": 2,
        "metrics": {metric: {"value": value, "unit": "share", "num": 2, "higher_is_better": True} for metric in METRICS},
        "reliability": [{"confidence": 0.5, "accuracy": value, "num_tokens": 3}, {"confidence": None, "accuracy": None}],
        "risk_coverage": [],
        "uncertainty": None,
        "items": [{"item_id": f"{name}.jsonl:{line}", "num_tokens": 5, **answers} for line in (1, 2)],
    }


def comparison_of(models: list[str]) -> dict[str, Any]:
    interval = {"mean": 0.9, "low": 0.8, "high": 0.95, "values": [0.9]}
    method = {"num_seeds": 1, "metrics": {"in_domain_accuracy": interval, "in_domain_nll": None}}
    delta = {"set": "ood/boolq", "metric": "accuracy", "method": "sft", "reference": "base", "value": -0.1, "verdict": "tie"}
    return {"methods": dict.fromkeys(models, method), "differences": [delta], "set_differences": [delta]}


def gate_of(candidate: str) -> dict[str, Any]:
    answers = [
        {"question": "in_domain_superiority", "against": "base", "outcome": "met", "sentence": "It is better in-domain."},
        {"question": "ood_non_inferiority", "against": "base", "outcome": "missed", "sentence": "It lost 0.1 on boolq."},
    ]
    return {"verdict": "reject", "candidate": candidate, "answers": answers, "champion": None, "exit_code": 4}


@pytest.fixture
def project(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own: two models, a report and a dvc.lock."""
    for module in (tracking_models, tracking_publish):
        monkeypatch.setattr(module, "MODELS", tmp_path / "artifacts/models")
        monkeypatch.setattr(module, "DATA", tmp_path / "artifacts/data")
        monkeypatch.setattr(module, "ROOT", tmp_path)
    report = tmp_path / "artifacts/report"
    report.mkdir(parents=True)
    for name in ("report.html", "tokens.html", "gate.md", "model_card.md"):
        (report / name).write_text(f"page {name}")
    lock = {"path": "artifacts/models/sft-1", "md5": "abc.dir"}
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"post_train@sft-1": {"outs": [lock]}}}))
    (report / "pareto.png").write_bytes(b"\x89PNG")
    for model in ("sft-0", "sft-1"):
        folder = tmp_path / "artifacts/models" / model
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(json.dumps({"fingerprint": f"training of {model}"}))
    return tmp_path


def train(model: str, lineage: dict[str, str]) -> str:
    tags = {"ballast.fingerprint": f"training of {model}", "ballast.preset": "sft"}
    with RunRecorder(model, {"preset": "sft", "learning_rate": 0.1}, tags, lineage=lineage) as run:
        run.log(1, {"nll": 1.5})
        run.refer_to_model()
    return run.run_id


def publish(project: Path) -> str:
    models = ["base", "sft-0", "sft-1", "champion"]
    evaluations = [evaluation_of(model) for model in models[:3]] + [{"absent": "no champion yet"}]
    return publish_comparison(comparison_of(models[:2]), gate_of("sft-1"), evaluations, project / "artifacts/report")


def children(parent: str) -> dict[str, Any]:
    experiment = open_client().get_run(parent).info.experiment_id
    found = open_client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def all_of_the_store(run_id: str) -> list[Any]:
    client = open_client()
    runs = client.search_runs([client.get_run(run_id).info.experiment_id])
    metrics = {
        (run.info.run_id, key): [(m.value, m.timestamp, m.step) for m in client.get_metric_history(run.info.run_id, key)]
        for run in runs
        for key in run.data.metrics
    }
    infos = sorted((run.info.run_id, run.info.status, run.info.end_time, sorted(run.data.tags.items())) for run in runs)
    models = client.search_logged_models([runs[0].info.experiment_id])
    return [infos, metrics, sorted((model.model_id, len(model.metrics)) for model in models)]


def files(run_id: str, folder: str | None = None) -> set[str]:
    return {file.path for file in open_client().list_artifacts(run_id, folder)}


def used_model(run_id: str) -> str:
    return str(open_client().get_run(run_id).inputs.model_inputs[0].model_id)


def check_published(project: Path) -> None:
    old = train("sft-0", {"params.sha256": "older", "git.commit": "older"})
    new = train("sft-1", lineage_tags())
    parent = publish(project)
    once = all_of_the_store(parent)
    assert publish(project) == parent
    assert all_of_the_store(parent) == once

    under = children(parent)
    assert set(under) == {"base", "sft-0", "sft-1"}
    assert {run.info.status for run in under.values()} == {"FINISHED"}
    assert (under["sft-1"].info.run_id, under["sft-0"].data.tags["ballast.trained_in"]) == (new, old)
    assert under["sft-0"].data.params == under["sft-1"].data.params == {"preset": "sft", "learning_rate": "0.1"}
    assert {run.data.metrics["in_domain_accuracy"] for run in under.values()} == {0.9}
    assert {run.data.metrics["ood/boolq/accuracy"] for run in under.values()} == {0.5}
    assert {run.data.tags["ballast.is_candidate"] for run in under.values()} == {"true", "false"}
    assert used_model(under["sft-0"].info.run_id) == open_client().get_run(old).outputs.model_outputs[0].model_id
    for run in under.values():
        asked = {used.dataset.name: used.tags[0].value for used in run.inputs.dataset_inputs}
        assert asked == dict.fromkeys(("validation", "in_domain", "ood/boolq", "base_text"), "evaluation")
        assert files(run.info.run_id) == {"calibration.png", "tables"}


def test_each_model_is_a_child_with_its_figures_and_publishing_twice_changes_nothing(project: Path) -> None:
    check_published(project)


@pytest.mark.mlflow_server
def test_a_server_takes_what_a_database_takes(project: Path, server: Server) -> None:
    check_published(project)


def test_the_parent_has_report_tables_figures_of_the_candidate_and_the_verdict(project: Path) -> None:
    train("sft-1", lineage_tags())
    parent = publish(project)
    run = open_client().get_run(parent)
    assert (run.info.status, run.data.metrics["in_domain_accuracy"]) == ("FINISHED", 0.9)
    assert (
        run.data.tags.items()
        >= {"gate.verdict": "reject", "gate.candidate": "sft-1", "mlflow.note.content": "page gate.md"}.items()
    )
    assert run.data.tags["gate.reasons"] == "It lost 0.1 on boolq."
    pages = {"report.html", "tokens.html", "gate.md", "model_card.md", "pareto.png"}
    assert files(parent, "report") == {f"report/{name}" for name in pages}
    tables = {table["path"] for table in json.loads(run.data.tags["mlflow.loggedArtifacts"])}
    assert tables == {
        f"tables/{name}.json" for name in ("methods", "differences", "set_differences", "gate", "generated_answers")
    }
    assert files(parent, "tables") == tables


def test_a_tables_rows_are_read_back_by_mlflow(project: Path) -> None:
    parent = publish(project)
    experiment = open_client().get_run(parent).info.experiment_id
    frame = open_client().load_table(experiment, "tables/generated_answers.json", run_ids=[parent])
    assert list(frame["question"]) == ["in_domain in_domain.jsonl:1", "in_domain in_domain.jsonl:2"]
    assert list(frame["correct"]) == [False, False]


def test_metrics_stand_on_the_logged_model_beside_their_data_set(project: Path) -> None:
    run_id = train("sft-1", lineage_tags())
    publish(project)
    [output] = open_client().get_run(run_id).outputs.model_outputs
    model = open_client().get_logged_model(output.model_id)
    of_set = {metric.key: metric.dataset_name for metric in model.metrics}
    assert (of_set["ood/boolq/accuracy"], of_set["in_domain_accuracy"]) == ("ood/boolq", None)
    assert (model.tags["ballast.weights_fingerprint"], model.tags["dvc.md5"]) == ("weights of sft-1", "abc.dir")


def test_the_next_pipeline_run_gets_children_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("sft-1", lineage_tags())
    first = publish(project)
    monkeypatch.setattr(tracking_publish, "lineage_tags", lambda: {"params.sha256": "next", "git.commit": "next"})
    second = publish(project)
    assert first != second
    assert set(children(first)) == set(children(second)) == {"base", "sft-0", "sft-1"}
    assert children(second)["sft-1"].data.tags["ballast.trained_in"] == children(first)["sft-1"].info.run_id


def test_a_figure_that_is_not_finite_is_flagged_and_not_stored(project: Path) -> None:
    bad = evaluation_of("sft-1")
    bad["sets"]["ood/boolq"]["metrics"]["nll"]["value"] = math.inf
    for _ in range(2):
        parent = publish_comparison(comparison_of(["sft"]), gate_of("sft-1"), [bad], project / "artifacts/report")
    run = children(parent)["sft-1"]
    assert "ood/boolq/nll" not in run.data.metrics
    assert run.data.metrics["non_finite"] > 0
    assert "ood/boolq/nll" in run.data.tags["non_finite"]


def test_a_dead_server_is_named_in_ten_seconds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(TrackingError, match="Start that server"):
        publish(project)


def test_reasons_fit_into_a_tag() -> None:
    gate = gate_of("sft-0")
    gate["answers"] *= 1000
    assert len(gate_tags(gate)["gate.reasons"]) == 8000
    gate["answers"] = [answer for answer in gate["answers"] if answer["outcome"] == "met"][:1]
    assert gate_tags(gate)["gate.reasons"] == "It is better in-domain."


def test_a_table_has_the_columns_of_all_rows() -> None:
    table = comparison_tables(comparison_of(["base", "sft"]), {"answers": []})["methods"]
    assert table["columns"] == ["method", "num_seeds", "in_domain_accuracy", "in_domain_accuracy interval", "in_domain_nll"]
    assert table["data"][1] == ["sft", 1, 0.9, "0.8000 to 0.9500", None]


def test_what_generated_nothing_has_no_table_and_what_has_no_bins_no_picture() -> None:
    evaluation = evaluation_of("sft-0")
    assert calibration_figure(evaluation) is not None
    for result in evaluation["sets"].values():
        result["items"] = [{**item, "answer": None} for item in result["items"]]
        result["reliability"] = []
    assert (answers_table(evaluation), calibration_figure(evaluation)) == (None, None)
