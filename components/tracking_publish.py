"""A finished comparison in MLflow: every model a child of the present pipeline run, and the report and the gate's verdict on it.

Doing it twice changes nothing. A model that DVC did not train again has its run under an older parent; it gets a light child
here, with params, final figures and the tag `ballast.trained_in`, so that the children of one parent compare side by side.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import DATA, MODELS, REPORT, ROOT, fingerprint_json, read_json
from components.evaluation.headline import model_metrics
from components.tracking import log_final
from components.tracking_models import (
    dvc_hashes,
    evaluation_datasets,
    log_datasets,
    log_figures,
    model_path,
    refer_to_model,
    training_datasets,
)
from components.tracking_parent import KIND_TAG, lineage_tags, open_parent
from components.tracking_points import MAX_TAG_LENGTH, MODEL_TAG, PARENT_TAG, cut, send_params, send_points
from components.tracking_recorder import newest_run
from components.tracking_store import hold_lock, initialise_store, note_run, open_client, tracking_errors, tracking_lock
from components.tracking_tables import Table, answers_table, calibration_figure, comparison_tables

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPORT_FILES = ("report.html", "tokens.html", "pareto.png", "gate.md", "gate.json", "model_card.md", "methods.csv", "curves.csv")
TRAINED_IN_TAG = "ballast.trained_in"
PUBLISHED_TAG = "ballast.published"
"""Fingerprint of what was written last; set at the very end, so that an interrupted publishing is done again."""
TABLES_TAG = "mlflow.loggedArtifacts"
NOTE_TAG = "mlflow.note.content"


def publish_comparison(
    comparison: Mapping[str, Any], gate: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], report: Path = REPORT
) -> str:
    """Write all of it; the id of the parent run, which is FINISHED with this. A champion that is absent is passed over."""
    experiment = initialise_store()
    with tracking_errors("Publishing the comparison"), hold_lock(tracking_lock("publish"), 600.0):
        client = open_client()
        lineage = lineage_tags()
        parent = open_parent(client, experiment, lineage)
        present = [evaluation for evaluation in evaluations if "absent" not in evaluation]
        candidate = str(gate["candidate"])
        hashes = dvc_hashes(ROOT / "dvc.lock")
        for evaluation in present:
            publish_model(client, parent, evaluation, hashes, is_candidate=evaluation["model"] == candidate)
        chosen = next(evaluation for evaluation in present if evaluation["model"] == candidate)
        log_final(parent, {key: value for key, value in model_metrics(chosen).items() if value is not None}, {})
        log_datasets(client, parent, training_datasets(), "training")
        log_datasets(client, parent, list(evaluation_datasets(chosen).values()), "evaluation")
        tags = {**lineage, **gate_tags(gate), NOTE_TAG: _note(gate, report)}
        send_points(client, parent, [], tags)
        _log_report(client, parent, report)
        _log_tables(client, parent, {**comparison_tables(comparison, gate), **_answers(chosen)})
        if client.get_run(parent).info.status != "FINISHED":
            client.set_terminated(parent, "FINISHED")
        note_run("pipeline", experiment, parent)
        return parent


def gate_tags(gate: Mapping[str, Any]) -> dict[str, str]:
    """Verdict and reasons, short enough for a tag; what was met needs no reason where something was not."""
    answers = gate.get("answers", [])
    told = [answer for answer in answers if answer["outcome"] != "met"] or answers
    return {
        "gate.verdict": str(gate["verdict"]),
        "gate.reasons": cut(" ".join(str(answer["sentence"]) for answer in told), MAX_TAG_LENGTH),
        "gate.candidate": str(gate["candidate"]),
    }


def publish_model(
    client: "MlflowClient", parent: str, evaluation: Mapping[str, Any], hashes: Mapping[str, str], *, is_candidate: bool
) -> str:
    """The child of one model with its final figures; the id of its run."""
    run_id, model_id = _child_of(client, parent, evaluation, hashes)
    published = fingerprint_json([evaluation, is_candidate])
    if client.get_run(run_id).data.tags.get(PUBLISHED_TAG) == published:
        return run_id
    log_figures(client, run_id, evaluation, model_metrics(evaluation), model_id)
    figure = calibration_figure(evaluation)
    if figure is not None:
        client.log_figure(run_id, figure, "calibration.png")
    _log_tables(client, run_id, _answers(evaluation))
    send_points(client, run_id, [], {"ballast.is_candidate": str(is_candidate).lower(), PUBLISHED_TAG: published})
    return run_id


def _child_of(
    client: "MlflowClient", parent: str, evaluation: Mapping[str, Any], hashes: Mapping[str, str]
) -> tuple[str, str | None]:
    """Run and LoggedModel of a model under this parent; base and champion have none here."""
    name = str(evaluation["model"])
    trained = _training_run(client, client.get_run(parent).info.experiment_id, name)
    tags = {"ballast.weights_fingerprint": str(evaluation["model_fingerprint"])}
    if model_path(name) in hashes:
        tags["dvc.md5"] = hashes[model_path(name)]
    if trained is None:  # base, champion, or trained where another store was
        child = _light_child(client, parent, evaluation, None)
        return child, refer_to_model(client, child, tags) if (MODELS / name).is_dir() else None
    model_id = refer_to_model(client, trained, tags)
    if client.get_run(trained).data.tags.get(PARENT_TAG) == parent:
        return trained, model_id
    return _light_child(client, parent, evaluation, trained, model_id), model_id


def _training_run(client: "MlflowClient", experiment: str, name: str) -> str | None:
    note = MODELS / name / "training.json"
    if not note.is_file():
        return None
    return newest_run(client, experiment, name, read_json(note, made_by="post_train")["fingerprint"])


def _light_child(
    client: "MlflowClient", parent: str, evaluation: Mapping[str, Any], trained: str | None, model_id: str | None = None
) -> str:
    """One that holds no curve: made at first call, found again by parent, model and the run that trained it."""
    from mlflow.entities import LoggedModelInput

    name, origin = str(evaluation["model"]), trained or _origin(evaluation)
    experiment = client.get_run(parent).info.experiment_id
    wanted = f"tags.`{PARENT_TAG}` = '{parent}' and tags.`{MODEL_TAG}` = '{name}' and tags.`{TRAINED_IN_TAG}` = '{origin}'"
    found = client.search_runs([experiment], wanted, max_results=1)
    if found:
        return str(found[0].info.run_id)
    kind = {KIND_TAG: "evaluation", TRAINED_IN_TAG: origin, "ballast.preset": str(evaluation["preset"])}
    run_id = str(client.create_run(experiment, tags={PARENT_TAG: parent, MODEL_TAG: name, **kind}, run_name=name).info.run_id)
    params = {"preset": str(evaluation["preset"]), "seed": str(evaluation["seed"])}
    send_params(client, run_id, params if trained is None else client.get_run(trained).data.params)
    if model_id is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _origin(evaluation: Mapping[str, Any]) -> str:
    """A champion is told from the next one by its weights; the base was not trained here."""
    return "not trained here" if evaluation["model"] == "base" else f"unknown run of {evaluation['model_fingerprint']}"


def _answers(evaluation: Mapping[str, Any]) -> dict[str, Table]:
    table = answers_table(evaluation)
    return {} if table is None else {"generated_answers": table}


def _log_tables(client: "MlflowClient", run_id: str, tables: Mapping[str, Table]) -> None:
    """As log_table would, which appends to what is there: written twice it would show every row twice."""
    for name, table in tables.items():
        client.log_dict(run_id, table, f"tables/{name}.json")
    if tables:
        listed = [{"path": f"tables/{name}.json", "type": "table"} for name in tables]
        client.set_tag(run_id, TABLES_TAG, json.dumps(listed))


def _log_report(client: "MlflowClient", run_id: str, report: Path) -> None:
    for name in REPORT_FILES:
        if (report / name).is_file():
            client.log_artifact(run_id, str(report / name), "report")
    for path, folder in ((DATA / "data_card.json", "data"), (ROOT / "params.yaml", "pipeline"), (ROOT / "dvc.lock", "pipeline")):
        if path.is_file():
            client.log_artifact(run_id, str(path), folder)


def _note(gate: Mapping[str, Any], report: Path) -> str:
    """What MLflow's page shows on top of the run."""
    page = report / "gate.md"
    if page.is_file():
        return cut(page.read_text(encoding="utf-8"), MAX_TAG_LENGTH)
    return cut(f"Gate: **{gate['verdict']}**. {gate_tags(gate)['gate.reasons']}", MAX_TAG_LENGTH)
