"""The MLflow run of a whole pipeline run, under which the runs of its models stand.

A pipeline run is one content of params.yaml at one git commit on one set of data. Its stages are processes of their own, some at
the same time, and none of them knows the others: so whoever comes first makes the parent, and all find it by what it is.
"""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.artifacts import DATA, ROOT, fingerprint_json
from components.tracking_points import cut, flatten, send_params
from components.tracking_store import hold_lock, tracking_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

PIPELINE_TAG = "ballast.pipeline"
KIND_TAG = "ballast.kind"
"""pipeline, training, or evaluation: a model that this pipeline run did not train."""


def open_parent(client: "MlflowClient", experiment: str, lineage: Mapping[str, str], root: Path = ROOT) -> str:
    """The id of the present pipeline run's parent, made if there is none. Safe for the processes of one machine.

    The lock keeps this machine's processes apart. Of two machines the later one sees both runs, and removes its own.
    """
    pipeline = pipeline_fingerprint(lineage)
    with hold_lock(tracking_lock("parent")):
        found = _find(client, experiment, pipeline)
        if found is not None:
            return found
        tags = {**lineage, **source_tags(lineage), PIPELINE_TAG: pipeline, KIND_TAG: "pipeline"}
        made = str(client.create_run(experiment, tags=tags, run_name=parent_name(pipeline, lineage, root)).info.run_id)
        first = _find(client, experiment, pipeline) or made
        if first != made:
            client.delete_run(made)
            return first
        send_params(client, made, _all_params(root))
        return made


def set_running(client: "MlflowClient", run_id: str) -> None:
    if client.get_run(run_id).info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")


def pipeline_fingerprint(lineage: Mapping[str, str], identity: Path = DATA / "identity.json") -> str:
    data = identity.read_text(encoding="utf-8") if identity.is_file() else None
    return fingerprint_json([lineage["params.sha256"], lineage["git.commit"], data])


def parent_name(pipeline: str, lineage: Mapping[str, str], root: Path = ROOT) -> str:
    """The name of the DVC experiment; without one the branch, or the commit where no branch is checked out."""
    branch = _git(root, "symbolic-ref", "--short", "HEAD")
    return os.environ.get("DVC_EXP_NAME") or f"{branch or lineage['git.commit'][:8]}-{pipeline[:8]}"


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


def source_tags(lineage: Mapping[str, str]) -> dict[str, str]:
    """Who, what and which commit, where MLflow's own table of runs has columns for them."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or str(os.getuid())
    source = {"mlflow.source.name": "dvc repro", "mlflow.source.type": "LOCAL", "mlflow.user": user}
    commit = lineage["git.commit"]
    return source if commit == "unknown" else {**source, "mlflow.source.git.commit": commit}


def _find(client: "MlflowClient", experiment: str, pipeline: str) -> str | None:
    wanted = f"tags.`{PIPELINE_TAG}` = '{pipeline}'"
    runs = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    return str(runs[0].info.run_id) if runs else None


def _all_params(root: Path) -> dict[str, str]:
    path = root / "params.yaml"
    values: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {cut(key, 250): value for key, value in flatten(values or {}).items()}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "unknown"
