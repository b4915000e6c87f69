"""MLflow runs: what the flows call. One run per model, under one run per pipeline run.

python -m components.tracking          # sends what a dead server did not take
"""

import logging
from collections.abc import Mapping
from typing import Any

from components.errors import TrackingError
from components.tracking_models import log_figures, refer_to_model, training_datasets
from components.tracking_parent import KIND_TAG, lineage_tags
from components.tracking_points import FINGERPRINT_TAG, MODEL_TAG, make_points, send_points
from components.tracking_recorder import RunRecorder, find_run, send_unsent
from components.tracking_store import initialise_store, open_client, tracking_errors, tracking_uri

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
logger = logging.getLogger(__name__)


def record_training(preset: str, seed: int, fingerprint: str, params: Mapping[str, object]) -> RunRecorder:
    """The run of one cell of the grid, named after it; found again by its fingerprint when a killed training goes on."""
    name = f"{preset}-{seed}"
    tags = {MODEL_TAG: name, FINGERPRINT_TAG: fingerprint, "ballast.preset": preset, KIND_TAG: "training"}
    all_params = {"preset": preset, "seed": seed, **params}
    return RunRecorder(name, all_params, tags, lineage=lineage_tags(), datasets=training_datasets())


def log_evaluation(evaluation: Mapping[str, Any], fingerprint: str, headline: Mapping[str, float]) -> None:
    """Final figures beside the curves of the run that trained the model, and on its LoggedModel.

    No run or no server: a warning, the file has them and publishing writes them again.
    """
    name = evaluation["model"]
    try:
        run_id = find_run(name, fingerprint)
        if run_id is not None:
            with tracking_errors(f"Writing to run {run_id}"):
                client = open_client()
                tags = {"ballast.weights_fingerprint": str(evaluation["model_fingerprint"])}
                log_figures(client, run_id, evaluation, headline, refer_to_model(client, run_id, tags))
    except TrackingError as error:
        logger.warning("The figures of %s are not in MLflow, only in artifacts/evaluations: %s", name, error)


def log_final(run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Append to a run, ended or not. A metric that has this value already is not written again."""
    initialise_store()
    with tracking_errors(f"Writing to run {run_id}"):
        client = open_client()
        known = client.get_run(run_id).data.metrics
        points, bad = make_points(0, {key: value for key, value in metrics.items() if known.get(key) != value})
        send_points(client, run_id, points, {**tags, **({"non_finite": ", ".join(bad)} if bad else {})})


if __name__ == "__main__":
    print(f"{send_unsent()} points sent")
