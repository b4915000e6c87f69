"""What a micro-batch's tokens get from the optimiser step they belong to: facts, random numbers, threshold, refusal of NaN.

Shapes: N predicted tokens of the micro-batch, V vocabulary. Used by ObjectiveTrainer and by the loss for a plain Trainer alike.
"""

from dataclasses import dataclass

import torch
from accelerate.utils import gather, pad_across_processes
from torch import Tensor, distributed

from components.errors import TrainingError
from components.objectives.fused_head import FusedLoss
from components.objectives.objective import Objective
from components.objectives.weights import TokenFacts
from components.training.columns import StepColumns
from components.training.threshold import ScoreThreshold
from components.training.token_layout import TokenLayout, fingerprints_of
from components.training.token_weigher import TokenWeigher
from components.uncertainty.selection import random_scores
from components.uncertainty.token_classes import classify_targets


@dataclass(frozen=True)
class StepPlace:
    """Where a micro-batch stands. `part`: its number within the step, over all micro-batches and ranks."""

    seed: int
    step: int
    num_steps: int
    part: int


def weigher_of(
    objective: Objective,
    layout: TokenLayout,
    columns: StepColumns,
    threshold: ScoreThreshold,
    class_of_token_V: Tensor | None,
    place: StepPlace,
) -> TokenWeigher:
    """Weighs the tokens of this micro-batch; `threshold` is shared by all of them."""
    return TokenWeigher(
        objective,
        facts_of(objective, layout, columns, class_of_token_V, place),
        threshold,
        distil_weight=objective.distil_weight_at(place.step, place.num_steps),
        selects=place.step >= objective.warmup_steps,
    )


def facts_of(
    objective: Objective, layout: TokenLayout, columns: StepColumns, class_of_token_V: Tensor | None, place: StepPlace
) -> TokenFacts:
    class_N = None
    if class_of_token_V is not None:
        labels_N = layout.labels_N.clamp(min=0)  # a prompt token's class is never looked at
        class_N = classify_targets(class_of_token_V, labels_N, layout.is_turn_start_N)
    return TokenFacts(
        is_target_N=layout.is_target_N,
        row_N=layout.row_N,
        teacher_logprob_N=columns.teacher.label_logprob_N if columns.teacher else None,
        class_N=class_N,
        random_N=random_of(layout, place) if objective.select == "random" else None,
        columns=columns.scores,
    )


def random_of(layout: TokenLayout, place: StepPlace) -> Tensor:
    """Uniform numbers that depend on seed, step and the row's number within the step alone: the same in every split."""
    first = place.part * layout.num_rows
    random_N = torch.ones(len(layout.labels_N))
    rows_N, is_target_N = layout.row_N.cpu(), layout.is_target_N.cpu()
    for row in range(layout.num_rows):
        own_N = (rows_N == row) & is_target_N
        random_N[own_N] = random_scores(int(own_N.sum()), place.seed, place.step, first + row)
    return random_N.to(layout.labels_N.device)


def gather_scores(scores_N: Tensor) -> Tensor:
    """The scores of every rank; each must call this, with as many as it has."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return scores_N
    gathered_N: Tensor = gather(pad_across_processes(scores_N, pad_index=float("nan")))
    return gathered_N[~gathered_N.isnan()]


def refuse_non_finite(
    terms: FusedLoss, layout: TokenLayout, inputs: dict[str, Tensor], labels_BT: Tensor, step: int, *, repair: str
) -> None:
    """Raised before the step is taken: no weight has seen this loss, and the last checkpoint stays good."""
    if torch.isfinite(terms.loss_sum):
        return
    token = int((~torch.isfinite(terms.nll_N + terms.kl_N)).int().argmax())
    names = fingerprints_of(inputs, labels_BT)
    raise TrainingError(
        f"the loss is {float(terms.loss_sum.detach())} at step {step} (first in row {names[int(layout.row_N[token])]}; "
        f"rows of the micro-batch: {', '.join(names)}). Nothing was saved from this step. {repair}"
    )
