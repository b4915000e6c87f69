"""The identity that token scores must have for the artifacts at hand: read from what `prepare_base` and `prepare_data` left."""

from typing import Any

from components.artifacts import BASE_MODEL, DATA, read_json
from components.params import TokenScoresParams, TrainingParams
from components.token_scores.format import ScoresIdentity

MEMBER_KNOBS = (
    "batch_size",
    "micro_batch_size",
    "learning_rate",
    "warmup_fraction",
    "weight_decay",
    "max_grad_norm",
    "precision",
    "packing",
    "lora",
)
"""Settings of `training` that the members share with the students; dvc.yaml lists the same, so another number of steps (the
members have token_scores.num_steps) does not score anew."""


def expected_identity(params: TokenScoresParams, training: TrainingParams) -> ScoresIdentity:
    base = read_json(BASE_MODEL / "base_model.json", made_by="prepare_base")
    data = read_json(DATA / "identity.json", made_by="prepare_data")
    return ScoresIdentity(
        model_fingerprint=base["fingerprint"],
        tokenizer_fingerprint=data["tokenizer_fingerprint"],
        data_fingerprint=data["train_fingerprint"],
        settings=settings_of(params, training),
    )


def settings_of(params: TokenScoresParams, training: TrainingParams) -> dict[str, Any]:
    """Only what has an effect: another seed does not matter where no member is trained."""
    own, shared = params.model_dump(mode="json"), training.model_dump(mode="json")
    names = {"none": (), "cross_fit": ("num_members", "num_steps", "seed"), "local": ("reference_path",)}[params.reference]
    knobs = {"none": (), "cross_fit": MEMBER_KNOBS, "local": ("precision",)}[params.reference]
    if params.columns:
        names = (*names, "columns", "columns_path")
    return {
        "token_scores.reference": params.reference,
        **{f"token_scores.{name}": own[name] for name in names},
        **{f"training.{name}": shared[name] for name in knobs},
    }
