"""What a run says of its model: the data sets it was trained and asked on, a LoggedModel by reference, and final figures on both.

Nothing is copied: a data set is a name, a digest and a path; a LoggedModel is tags that say where the weights lie.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from components.artifacts import DATA, MODELS, ROOT, fingerprint_file, fingerprint_json, read_json
from components.tracking_points import FINGERPRINT_TAG, MODEL_TAG, make_points, metric_key, send_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

SPLITS = {"train": "train", "validation": "validation", "in_domain": "test"}
"""Name of a data set in MLflow -> split of artifacts/data; every other set is named as in the evaluation."""
REFERENCE_TAG = "ballast.weights"
EXTERNAL_TAG = "mlflow.model.isExternal"


class Dataset(NamedTuple):
    name: str
    digest: str
    source: str
    num_rows: int


def training_datasets() -> list[Dataset]:
    """Training and validation split as prepare_data left them; none where it did not run (a test, a bare machine)."""
    identity = DATA / "identity.json"
    if not identity.is_file():
        return []
    validation = DATA / "validation.arrow"
    rows = read_json(DATA / "counts.json", made_by="prepare_data")["rows_used"]
    train = str(read_json(identity, made_by="prepare_data")["train_fingerprint"])
    return [
        Dataset("train", train, _source(DATA / "train.arrow"), rows["train"]),
        Dataset("validation", fingerprint_file(validation), _source(validation), rows["validation"]),
    ]


def evaluation_datasets(evaluation: Mapping[str, Any]) -> dict[str, Dataset]:
    """The sets a model was asked, by name; equal for all models of a comparison."""
    return {name: _dataset_of(name, result) for name, result in evaluation["sets"].items()}


def _dataset_of(name: str, result: Mapping[str, Any]) -> Dataset:
    """The splits by their files. Of the others what the evaluation says, or else the names of its items and what they expect."""
    items = result.get("items", [])
    num_rows = result.get("num_items", len(items))
    split = DATA / f"{SPLITS[name]}.arrow" if name in SPLITS else None
    if split is not None and split.is_file():
        return Dataset(name, fingerprint_file(split), _source(split), num_rows)
    asked = [[item["item_id"], item.get("num_tokens"), item.get("expected")] for item in items]
    digest = result.get("fingerprint") or fingerprint_json(asked)
    file = str(items[0]["item_id"]).rpartition(":")[0] if items else ""
    return Dataset(name, digest, str(result.get("source") or file or name), num_rows)


def log_datasets(client: "MlflowClient", run_id: str, datasets: list[Dataset], context: str) -> None:
    """As inputs of the run: the column Dataset of the table of runs. One that the run has already stays as it is."""
    if datasets:
        client.log_inputs(run_id, [_input(dataset, context) for dataset in datasets])


def _input(dataset: Dataset, context: str) -> "DatasetInput":
    from mlflow.entities import Dataset as LoggedDataset
    from mlflow.entities import DatasetInput, InputTag

    source, profile = json.dumps({"uri": dataset.source}), json.dumps({"num_rows": dataset.num_rows})
    logged = LoggedDataset(dataset.name, dataset.digest[:36], "local", source, profile=profile)
    return DatasetInput(logged, [InputTag("mlflow.data.context", context)])


def refer_to_model(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> str:
    """The LoggedModel of a training run, made at first call: its output, with its params, and weights by path and fingerprint."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    name = run.data.tags[MODEL_TAG]
    wanted = f"source_run_id = '{run_id}' and tags.`{REFERENCE_TAG}` = 'by reference'"
    found = client.search_logged_models([run.info.experiment_id], wanted, max_results=1)
    if found:
        model_id = str(found[0].model_id)
        if new := {key: value for key, value in tags.items() if found[0].tags.get(key) != value}:
            client.set_logged_model_tags(model_id, new)
        return model_id
    all_tags = {
        REFERENCE_TAG: "by reference",
        EXTERNAL_TAG: "true",
        MODEL_TAG: name,
        FINGERPRINT_TAG: run.data.tags.get(FINGERPRINT_TAG, "unknown"),
        "ballast.path": model_path(name),
        **tags,
    }
    experiment, params = run.info.experiment_id, dict(run.data.params)
    model_id = str(client.create_logged_model(experiment, name, run_id, all_tags, params, "causal-lm").model_id)
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    return model_id


def dvc_hashes(lock: Path) -> dict[str, str]:
    """Path of a model -> where DVC has its weights: the hash of the folder, under which the cache and the remote keep it."""
    if not lock.is_file():
        return {}
    content = yaml.load(lock.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    trained = [stage for name, stage in content.get("stages", {}).items() if name.startswith("post_train@")]
    return {out["path"]: str(out["md5"]) for stage in trained for out in stage.get("outs", []) if "md5" in out}


def log_figures(
    client: "MlflowClient",
    run_id: str,
    evaluation: Mapping[str, Any],
    headline: Mapping[str, float | None],
    model_id: str | None,
) -> None:
    """Headline figures, and those of each set beside the set; what the run says already is not written again."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    datasets = evaluation_datasets(evaluation)
    log_datasets(client, run_id, list(datasets.values()), "evaluation")
    figures: dict[tuple[str | None, str], float | None] = {(None, key): value for key, value in headline.items()}
    figures |= {(name, f"{name}/{key}"): value for name, key, value in _set_figures(evaluation)}
    metrics, bad = [], []
    for (name, key), value in figures.items():
        if value is None or known.get(metric_key(key)) == value:
            continue
        points, not_finite = make_points(0, {key: value})
        bad += not_finite
        if not not_finite:
            digest = None if name is None else datasets[name].digest[:36]
            metrics += [Metric(p.key, p.value, p.milliseconds, p.step, model_id, name, digest, run_id) for p in points]
    if bad and known.get("non_finite") != len(bad):
        metrics.append(Metric("non_finite", float(len(bad)), time.time_ns() // 1_000_000, 0))
    if metrics:
        send_metrics(client, run_id, metrics, {"non_finite": ", ".join(bad)} if bad else {})


def _set_figures(evaluation: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    return [
        (name, key, figure["value"])
        for name, result in evaluation["sets"].items()
        for key, figure in result["metrics"].items()
        if figure is not None
    ]


def model_path(name: str) -> str:
    return _source(MODELS / name)


def _source(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
