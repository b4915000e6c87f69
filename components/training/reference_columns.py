"""The columns that a reference gives every target token, by cross-fitted members or by a model of the user's.

reference_nll       -log of the mean probability that the reference gives the realised token, nats
reference_entropy   entropy of its mean law, nats
mutual_information  entropy of the mean law less the mean entropy of the members, nats; needs two members per token
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.artifacts import ROOT
from components.data.training_rows import TrainingRow
from components.errors import ModelError
from components.models import (
    load_base_model,
    load_model,
    load_prepared_tokenizer,
    load_tokenizer,
    pad_token_id,
    select_dtype,
    weights_fingerprint,
)
from components.params import TokenScoresParams, TrainingParams
from components.training.cross_fitting import (
    LoadBase,
    TrainMember,
    member_training,
    plain_fine_tuning,
    plan_members,
    put_weights,
    train_members,
)
from components.training.held_out_scores import Scorer, score_rows


def reference_columns(
    rows: Sequence[TrainingRow], params: TokenScoresParams, training: TrainingParams, device: torch.device, work: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Columns [N] of distinct `rows`, and the fingerprint of the reference's weights where it is the user's."""
    tokenizer = load_prepared_tokenizer()
    if params.reference == "local":
        folder = ROOT / params.reference_path
        weights = weights_fingerprint(folder)  # the identity knows the path alone: other weights must not go on with these blocks
        return local_columns(rows, folder, tokenizer, training.precision, device, work / weights), {"reference": weights}
    settings, padding = member_training(params, training), pad_token_id(tokenizer)
    train_member = plain_fine_tuning(settings, device, padding)
    return cross_fit_columns(rows, params, load_base_model, train_member, settings.precision, device, work), {}


def cross_fit_columns(
    rows: Sequence[TrainingRow],
    params: TokenScoresParams,
    load_base: LoadBase,
    train_member: TrainMember,
    precision: str,
    device: torch.device,
    work: Path,
    **limits: int,
) -> dict[str, Tensor]:
    """Train the members, then score each row by those that have not seen it."""
    members = plan_members(rows, params.num_members, params.seed)
    files = train_members(members, rows, load_base, train_member, work)
    model: Any = load_base()
    model = model.to(device)
    scorers = [Scorer(partial(put_weights, model, file), member.held_out) for member, file in zip(members, files, strict=True)]
    return score_rows(rows, scorers, model.config.vocab_size, device=device, precision=precision, work=work, **limits)


def local_columns(
    rows: Sequence[TrainingRow], folder: Path, tokenizer: Any, precision: str, device: torch.device, work: Path
) -> dict[str, Tensor]:
    """One forward pass of the model in `folder`, which must read the same tokens."""
    refuse_other_tokens(folder, tokenizer)
    model: Any = load_model(folder, select_dtype(precision), device)
    config = model.config
    if config.vocab_size < len(tokenizer):
        raise ModelError(f"{folder} has a vocabulary of {config.vocab_size}, the data one of {len(tokenizer)}: {USE_ANOTHER}")
    longest, positions = max(len(row.input_ids) for row in rows), getattr(config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise ModelError(f"{folder} reads {positions} positions, the longest training row has {longest}: {USE_ANOTHER}")
    scorer = Scorer(lambda: model, tuple(range(len(rows))))
    return score_rows(rows, [scorer], config.vocab_size, device=device, precision=precision, work=work)


USE_ANOTHER = "it cannot score these rows. Set token_scores.reference_path to a model that was tuned from the same base"


def refuse_other_tokens(folder: Path, tokenizer: Any) -> None:
    """The same id must be the same token for both. The model may have more rows than tokens (padded embeddings)."""
    theirs, ours = load_tokenizer(folder).get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        other = min((token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)), key=str)
        raise ModelError(
            f"{folder} has another tokenizer than the data: {other!r} is token {theirs.get(other)} there and {ours.get(other)} "
            f"here; {USE_ANOTHER}"
        )
