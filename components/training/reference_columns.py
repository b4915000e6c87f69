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
from components.models import (
    load_base_model,
    load_prepared_tokenizer,
    load_reference_model,
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
    longest = max(len(row.input_ids) for row in rows)
    model: Any = load_reference_model(folder, tokenizer, longest, select_dtype(precision), device)
    scorer = Scorer(lambda: model, tuple(range(len(rows))))
    return score_rows(rows, [scorer], model.config.vocab_size, device=device, precision=precision, work=work)
