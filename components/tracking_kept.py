"""A training whose server would not have it from the start: all that its run needs lies in a file, and is made a run later.

A file is what `tracking_points.keep_unsent` writes; its header has a `start_time` and the params, tags and data sets of the run.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.tracking_models import Dataset, log_datasets
from components.tracking_parent import lineage_tags, open_parent, pipeline_fingerprint
from components.tracking_points import PARENT_TAG, send_params

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEPT_TAG = "ballast.kept_as"
"""Name of the file that the run was made from: sending it again goes on with that run."""


def describe_kept(
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    lineage: Mapping[str, str] | None,
    datasets: Sequence[Dataset],
) -> dict[str, Any]:
    """The header of a run that is not there yet. Until its training has ended, it counts as killed."""
    now = time.time_ns() // 1_000_000
    return {
        "run_id": f"kept-{now}-{os.getpid()}",
        "name": name,
        "start_time": now,
        "end_time": now,
        "status": "KILLED",
        "has_model": False,
        "params": dict(params),
        "run_tags": dict(tags),
        "lineage": None if lineage is None else dict(lineage),
        "pipeline": None if lineage is None else pipeline_fingerprint(lineage),
        "datasets": [list(dataset) for dataset in datasets],
    }


def is_kept_whole(header: Mapping[str, Any]) -> bool:
    """Whether there is no run yet that these points belong to."""
    return "start_time" in header


def make_run(client: "MlflowClient", experiment: str, header: Mapping[str, Any]) -> str:
    """The id of the run of a kept training, made at first call. Below its pipeline's run, while that pipeline is the present one.

    Afterwards nobody knows what that pipeline's params were: the run stands alone, with its lineage in its tags.
    """
    kept = str(header["run_id"])
    found = client.search_runs([experiment], f"tags.`{KEPT_TAG}` = '{kept}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
    else:
        tags = {**header["run_tags"], KEPT_TAG: kept}
        if header["lineage"] is not None and _is_present(header["lineage"], header["pipeline"]):
            tags[PARENT_TAG] = open_parent(client, experiment, header["lineage"])
        run_id = str(client.create_run(experiment, header["start_time"], tags, header["name"]).info.run_id)
    send_params(client, run_id, header["params"])
    log_datasets(client, run_id, [Dataset(*dataset) for dataset in header["datasets"]], "training")
    return run_id


def _is_present(lineage: Mapping[str, str], pipeline: str) -> bool:
    return lineage_tags()["params.sha256"] == lineage["params.sha256"] and pipeline_fingerprint(lineage) == pipeline
