"""The MLflow model registry: a candidate with its weights and the alias challenger. Champions: components/promotion.py.

Weights are stored once, as safetensors, and only after the stored form was seen to load and to generate.
"""

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from components.artifacts import WORK, fingerprint_files, fingerprint_json
from components.champion import fetch_champion as fetch_champion
from components.champion import model_id_of
from components.promotion import LOCK, LOCK_SECONDS
from components.servable_model import generate_answers, save_servable
from components.tracking_store import hold_lock, initialise_store, open_client, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FINGERPRINT_TAG = "ballast.model_fingerprint"


@dataclass(frozen=True)
class RegisteredVersion:
    name: str
    version: int
    alias: str
    run_id: str
    model_uri: str
    artifact_bytes: int


def register_candidate(
    model_folder: Path,
    *,
    name: str,
    alias: str = "challenger",
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    description: str,
    run_name: str,
    prompts: Sequence[str],
    max_new_tokens: int = 256,
    model_card: str | None = None,
) -> RegisteredVersion:
    """Register the model of a folder as a new version, and point the alias at it once it has answered every prompt.

    Weights that are registered already (same `ballast.model_fingerprint`) keep their version; only tags, metrics, description
    and alias are renewed.
    """
    assert prompts, "the first prompt is the input example"
    fingerprint = tags.get(FINGERPRINT_TAG) or _fingerprint(model_folder)
    tags = {**tags, FINGERPRINT_TAG: fingerprint}
    experiment = initialise_store()
    with hold_lock(LOCK, LOCK_SECONDS), tracking_errors(f"Registering {name}"):
        client = open_client()
        version = _find_version(client, name, fingerprint)
        if version is None:
            model_id = _find_weights(client, experiment, fingerprint)
            if model_id is None:
                title = f"{name}: {run_name}"
                card = model_card or f"---\nlibrary_name: transformers\n---\n# {title}\n"
                model_id = _log_weights(client, experiment, model_folder, tags, title, prompts, max_new_tokens, card)
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            run_id = client.get_logged_model(model_id).source_run_id
            version = client.create_model_version(name, f"models:/{model_id}", run_id, dict(tags), model_id=model_id)
        _describe(client, version, tags, metrics, description)
        client.set_registered_model_alias(name, alias, version.version)
        return _registered(client, version, alias)


def get_version_by_alias(name: str, alias: str) -> RegisteredVersion | None:
    """None when there is no such model, or it has no such alias."""
    initialise_store()
    with tracking_errors(f"Reading alias {alias} of {name}"):
        client = open_client()
        models = client.search_registered_models(f"name = '{name}'")
        number = models[0].aliases.get(alias) if models else None
        return None if number is None else _registered(client, client.get_model_version(name, str(number)), alias)


def _fingerprint(folder: Path) -> str:
    names = [path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".json", ".jinja")]
    return fingerprint_json(fingerprint_files(folder, names))


def _find_version(client: "MlflowClient", name: str, fingerprint: str) -> "ModelVersion | None":
    versions = client.search_model_versions(f"name = '{name}' and tag.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    return next((version for version in versions if _stored_bytes(client, model_id_of(version))), None)


def _find_weights(client: "MlflowClient", experiment: str, fingerprint: str) -> str | None:
    """Weights that are stored whole but have no version: registering was interrupted, or they have another name as well."""
    found = client.search_logged_models([experiment], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    whole = (model for model in found if str(model.status) == "READY" and _stored_bytes(client, model.model_id))
    return next((model.model_id for model in whole), None)


def _stored_bytes(client: "MlflowClient", model_id: str | None, path: str | None = None) -> int:
    """Without the note that MLflow drops beside a model when it is loaded by its registered name."""
    if model_id is None:
        return 0
    files = [file for file in client.list_logged_model_artifacts(model_id, path) if file.path != "registered_model_meta"]
    return sum(_stored_bytes(client, model_id, file.path) if file.is_dir else file.file_size or 0 for file in files)


def _registered(client: "MlflowClient", version: "ModelVersion", alias: str) -> RegisteredVersion:
    uri = f"models:/{version.name}/{version.version}"
    num_bytes = _stored_bytes(client, model_id_of(version))
    return RegisteredVersion(version.name, int(version.version), alias, version.run_id or "", uri, num_bytes)


def _describe(
    client: "MlflowClient", version: "ModelVersion", tags: Mapping[str, str], metrics: Mapping[str, float], description: str
) -> None:
    from mlflow.entities import Metric, RunTag

    client.update_model_version(version.name, version.version, description)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)
    if version.run_id:
        known = client.get_run(version.run_id).data.metrics
        new = {key: float(value) for key, value in metrics.items() if isfinite(value) and known.get(key) != value}
        now = time.time_ns() // 1_000_000
        points = [Metric(key, value, now, 0, model_id=model_id_of(version), run_id=version.run_id) for key, value in new.items()]
        run_tags = [RunTag(key, value) for key, value in {**tags, "mlflow.note.content": description}.items()]
        client.log_batch(version.run_id, metrics=points, tags=run_tags)


def _log_weights(
    client: "MlflowClient",
    experiment: str,
    folder: Path,
    tags: Mapping[str, str],
    title: str,
    prompts: Sequence[str],
    max_new_tokens: int,
    model_card: str,
) -> str:
    """Store the weights with a run of their own; the id of the logged model."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run_id = client.create_run(experiment, tags=dict(tags), run_name=title.partition(": ")[2]).info.run_id
    logged = client.create_logged_model(experiment, re.sub(r"\W+", "-", title), run_id, dict(tags), model_type="causal-lm")
    WORK.mkdir(exist_ok=True)
    status: Literal["READY", "FAILED"] = "FAILED"
    try:
        with tempfile.TemporaryDirectory(dir=WORK, prefix="register.") as staging:
            target = Path(staging) / "model"
            form = Model(logged.artifact_location, run_id, model_id=logged.model_id, model_uuid=logged.model_id)
            save_servable(
                folder, target, form, title=title, prompt=prompts[0], max_new_tokens=max_new_tokens, model_card=model_card
            )
            client.log_dict(run_id, {"generations": generate_answers(target, prompts)}, "generations.json")
            client.log_model_artifacts(logged.model_id, str(target))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
        status = "READY"
    finally:
        client.finalize_logged_model(logged.model_id, status)
        client.set_terminated(run_id, "FINISHED" if status == "READY" else "FAILED")
    return str(logged.model_id)
