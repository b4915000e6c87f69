"""What one look at the training records, as pure functions of the tokens seen and of the objective.

Shapes: N target tokens of all probe rows, in row order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from components.data.training_rows import count_targets
from components.objectives.objective import Objective
from components.objectives.sparse_target import TeacherTargets
from components.objectives.weights import (
    Threshold,
    TokenFacts,
    TokenWeights,
    select,
    sequence_thresholds,
    weights_of,
)
from components.training.target_scoring import Laws, ScoredTokens
from components.uncertainty.calibration import expected_calibration_error, rank_correlation, reliability_curve
from components.uncertainty.scores import excess_loss, probability_gain
from components.uncertainty.selection import quantile_threshold
from components.uncertainty.selective import area_under_risk_coverage
from components.uncertainty.token_classes import CLASSES
from components.uncertainty.truth import DETERMINED_NATS, UNKNOWN_NATS

NUM_ECE_BINS = 15
Truth = Literal["law", "reference", "none"]


@dataclass(frozen=True)
class ProbeRow:
    """One training row and what is known of its targets before training, [N] on the CPU.

    `texts`: one per token of the row, for the rows that are shown; `laws`: TokenizedRow.true_laws(); `class_N` counts in
    components.uncertainty.token_classes.CLASSES; `columns`: those of artifacts/token_scores; `teacher`: the cache's entries.
    """

    row_id: str
    input_ids: list[int]
    is_target: list[bool]
    class_N: Tensor
    texts: Sequence[str] = ()
    laws: Laws | None = None
    teacher_logprob_N: Tensor | None = None
    teacher: TeacherTargets | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """When the look is taken, and what the objective does from this step on."""

    step: int
    epoch: float
    threshold: float | None
    distil_weight: float


@dataclass(frozen=True)
class Seen:
    """One look at all rows: `validation` is None without such rows, `dropout_information` [N] without dropout members."""

    moment: Moment
    tokens: ScoredTokens
    validation: ScoredTokens | None
    dropout_information: Tensor | None


def facts_of(rows: Sequence[ProbeRow]) -> TokenFacts:
    """The facts of all targets; the teacher's logprob and each column only where every row has them."""
    counts = torch.tensor([count_targets(row) for row in rows], dtype=torch.long)
    teacher = [row.teacher_logprob_N for row in rows if row.teacher_logprob_N is not None]
    names = set.intersection(*(set(row.columns) for row in rows)) if rows else set()
    return TokenFacts(
        is_target_N=torch.ones(int(counts.sum()), dtype=torch.bool),
        row_N=torch.arange(len(rows)).repeat_interleave(counts),
        teacher_logprob_N=torch.cat(teacher).float() if rows and len(teacher) == len(rows) else None,
        class_N=torch.cat([row.class_N for row in rows]) if rows else torch.empty(0, dtype=torch.int8),
        columns={name: torch.cat([row.columns[name] for row in rows]).float() for name in sorted(names)},
    )


def truth_of(rows: Sequence[ProbeRow], facts: TokenFacts) -> Truth:
    """What the scores are told from: the true laws, else a reference model's loss, else nothing."""
    if any(row.laws is not None for row in rows):
        return "law"
    return "reference" if "reference_nll" in facts.columns else "none"


def all_scores(objective: Objective, tokens: ScoredTokens, facts: TokenFacts) -> dict[str, Tensor]:
    """Every score that can be computed, [N] each, by the names of the objective's knob."""
    scores = {"student_nll": tokens.nll, "entropy": tokens.entropy}
    reference_nll_N = facts.columns.get("reference_nll")
    if reference_nll_N is not None:
        scores["excess"] = excess_loss(tokens.nll, reference_nll_N)
    if facts.teacher_logprob_N is not None:
        scores["teacher_nll"] = -facts.teacher_logprob_N
        if reference_nll_N is not None:
            scores["teacher_excess"] = excess_loss(-facts.teacher_logprob_N, reference_nll_N)
            scores["probability_gain"] = probability_gain(reference_nll_N, -facts.teacher_logprob_N)
    if "mutual_information" in facts.columns:
        scores["mutual_information"] = facts.columns["mutual_information"]
    if objective.column is not None and objective.column in facts.columns:
        scores["column"] = facts.columns[objective.column]
    return scores


def weigh_probe(
    objective: Objective, tokens: ScoredTokens, scores_N: Tensor | None, facts: TokenFacts, moment: Moment
) -> TokenWeights:
    """Both weights of every token, as the next step would give them."""
    entropy_N = tokens.top_entropy if objective.entropy == "top20" else tokens.entropy
    if moment.step < objective.warmup_steps:
        selected_N = torch.ones_like(facts.is_target_N)
    else:
        selected_N = select(objective, scores_N, facts, _threshold(objective, scores_N, facts, moment))
    return weights_of(objective, selected_N, tokens.nll, entropy_N, facts, moment.distil_weight)


def _threshold(objective: Objective, scores_N: Tensor | None, facts: TokenFacts, moment: Moment) -> Threshold:
    """The one in force; scopes that have none make theirs: of each row, or (for micro_batch) of all probe rows together."""
    if scores_N is None or not objective.needs_threshold or not len(scores_N):
        return moment.threshold
    if objective.scope == "sequence":
        return sequence_thresholds(objective, scores_N, facts)
    if objective.scope == "micro_batch":
        return quantile_threshold(scores_N, objective.keep, objective.select)
    return moment.threshold


def class_table(tokens: ScoredTokens, facts: TokenFacts, weights: TokenWeights) -> dict[str, dict[str, Any]]:
    """Means over the tokens of each class that has any: what is learned, what is distilled, how well it is known."""
    assert facts.class_N is not None
    table = {}
    for number, name in enumerate(CLASSES):
        is_class_N = facts.class_N == number
        if bool(is_class_N.any()):
            table[name] = {
                "num_tokens": int(is_class_N.sum()),
                "selected_fraction": mean(weights.selected_N[is_class_N]),
                "mean_mle_weight": mean(weights.mle_N[is_class_N]),
                "mean_distil_weight": mean(weights.distil_N[is_class_N]),
                "mean_student_nll": mean(tokens.nll[is_class_N]),
                "mean_teacher_nll": None if facts.teacher_logprob_N is None else mean(-facts.teacher_logprob_N[is_class_N]),
            }
    return table


def against_truth(truth: Truth, tokens: ScoredTokens, facts: TokenFacts) -> tuple[Tensor | None, Tensor | None]:
    """Epistemic and aleatoric uncertainty of each token, [N], NaN where it is not known; None where it never is."""
    if truth == "law":
        return tokens.true_kl, tokens.true_entropy
    if truth == "reference":
        return excess_loss(tokens.nll, facts.columns["reference_nll"]), facts.columns.get("reference_entropy")
    return None, None


def score_table(
    scores: Mapping[str, Tensor], truth: Truth, epistemic_N: Tensor | None, aleatoric_N: Tensor | None
) -> dict[str, dict[str, float | None]]:
    """Spearman's rho of every score with either side; `excess` is not told from the reference that it is made of."""
    return {
        name: {
            "epistemic": None if (truth, name) == ("reference", "excess") else _rho(score_N, epistemic_N),
            "aleatoric": _rho(score_N, aleatoric_N),
        }
        for name, score_N in scores.items()
    }


def _rho(score_N: Tensor, truth_N: Tensor | None) -> float | None:
    if truth_N is None:
        return None
    known_N = ~truth_N.isnan()
    rho = rank_correlation(score_N[known_N], truth_N[known_N])
    return None if rho is None else number(rho)


def mask_table(selected_N: Tensor, epistemic_N: Tensor | None, aleatoric_N: Tensor | None) -> dict[str, float | None]:
    """What the mask picks, where the truth is known; a token is determined when its aleatoric uncertainty is at most
    DETERMINED_NATS, unknown when its epistemic one is above UNKNOWN_NATS (less than half of the probability it should have).

    Shares of the selected tokens, together 1: `epistemic_share` determined and unknown (what the mask is for), `known_share`
    determined and known, `noise_share` not determined. `epistemic_coverage`, `noise_coverage`: the selected part of all tokens
    of that kind.
    """
    names = ("epistemic_share", "known_share", "noise_share", "epistemic_coverage", "noise_coverage")
    if epistemic_N is None or aleatoric_N is None:
        return dict.fromkeys(names)
    known_N = ~(epistemic_N.isnan() | aleatoric_N.isnan())
    selected_N = selected_N[known_N]
    noise_N = aleatoric_N[known_N] > DETERMINED_NATS
    learnable_N = ~noise_N & (epistemic_N[known_N] > UNKNOWN_NATS)
    kinds = (learnable_N, ~noise_N & ~learnable_N, noise_N)
    shares = [mean(kind_N[selected_N]) for kind_N in kinds]
    return dict(zip(names, [*shares, mean(selected_N[learnable_N]), mean(selected_N[noise_N])], strict=True))


def validation_table(tokens: ScoredTokens) -> dict[str, float | None] | None:
    """Figures of the validation rows; None without a token."""
    if not len(tokens):
        return None
    ece = expected_calibration_error(reliability_curve(tokens.confidence, tokens.is_correct, NUM_ECE_BINS))
    aurc = area_under_risk_coverage(tokens.confidence, 1 - tokens.is_correct)
    assert ece is not None and aurc is not None
    return {"nll": mean(tokens.nll), "ece": number(ece), "brier": mean(tokens.brier), "aurc": number(aurc)}


def mean(values: Tensor) -> float | None:
    """None without a value; NaN (not known) counts nothing."""
    known = values.double()[~values.double().isnan()]
    return number(float(known.mean())) if len(known) else None


def number(value: float) -> float | None:
    """Six significant digits: enough for a figure, and the same in JSON and back."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def numbers(values: Tensor) -> list[float | None]:
    return [number(value) for value in values.tolist()]
