"""One cell of the grid: a post-training run with everything that the stages before it have left."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import fingerprint_json
from components.objectives.objective import Objective
from components.params import ProbeParams, TrainingParams
from components.training.callbacks import MetricSink
from components.training.inputs import TrainingInputs, probe_rows, validation_fingerprint, validation_rows
from components.training.post_train import PostTrainingResult, post_train_model
from components.training.probe import TrainingProbe
from components.training.ranks import Ranks
from components.training.trainer import ObjectiveTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_fingerprint(objective: Objective, training: TrainingParams, inputs: TrainingInputs, seed: int) -> str:
    """Everything that decides the model, and nothing that only looks at it: it names the model and its run.

    The validation rows decide where early stopping ends; without it they decide nothing. Captured laws follow from the cache's
    identity; imported ones are whatever the imported files said, which only the seal of the whole cache tells.
    """
    cache = inputs.cache.manifest
    return fingerprint_json(
        {
            "objective": asdict(objective),
            "training": training.model_dump(),
            "cache": asdict(cache.identity) if cache.identity.source == "capture" else cache.seal,
            "scores": inputs.scores.manifest.seal,
            "validation": validation_fingerprint(inputs) if training.early_stopping.enabled else None,
            "seed": seed,
        }
    )


def resume_key(fingerprint: str, inputs: TrainingInputs, probe: ProbeParams) -> str:
    """A checkpoint is resumed only under the same key. It holds the probe's record as well, which must not mix two probes."""
    return fingerprint_json({"run": fingerprint, "probe": probe.model_dump(), "validation": validation_fingerprint(inputs)})


def train_cell(
    model: "PreTrainedModel",
    inputs: TrainingInputs,
    objective: Objective,
    training: TrainingParams,
    probe: ProbeParams,
    sink: MetricSink,
    *,
    name: str,
    seed: int,
    ranks: Ranks,
    work: Path,
) -> PostTrainingResult:
    """Train `model` on the prepared rows and look at it on the way; `name`: the objective's key in params.yaml."""
    inputs.scores.require(objective.columns)
    looked_at, held_out = probe_rows(inputs, probe), validation_rows(inputs)

    def make_probe(trainer: ObjectiveTrainer) -> TrainingProbe:
        return TrainingProbe(
            objective,
            looked_at,
            held_out,
            name=name,
            threshold=trainer.threshold.current,
            params=probe,
            pad_token_id=inputs.pad_token_id,
            teacher_temperature=inputs.cache.manifest.identity.temperature,
            sink=sink,
        )

    return post_train_model(
        model,
        inputs.rows,
        inputs.cache,
        objective,
        training,
        seed=seed,
        device=ranks.device,
        pad_token_id=inputs.pad_token_id,
        work=work,
        sink=sink,
        scores=inputs.scores,
        class_of_token_V=inputs.class_of_token_V,
        validation=held_out,
        make_probe=make_probe,
        shards=ranks.shards,
    )
