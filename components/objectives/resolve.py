"""From params.yaml to an objective: the preset's knobs with the given ones on top; what could have no effect is refused.

Refused, never ignored in silence: a knob without effect, and a combination that cannot be computed; both with the reason.
"""

from dataclasses import replace
from typing import Any

from components.errors import ParamsError
from components.objectives.objective import REFERENCE_SCORES, STATIC_SCORES, Objective
from components.objectives.presets import PRESETS
from components.objectives.rules import refuse_impossible
from components.params import ObjectiveParams, Params, TeacherCacheParams, TokenScoresParams

SELECTION_KNOBS = (
    "select",
    "score",
    "column",
    "keep",
    "threshold_nats",
    "threshold_value",
    "scope",
    "protect",
    "warmup_steps",
)
DISTILLATION_KNOBS = ("distil_weight", "distil_weight_final", "temperature", "divergence", "teacher")


def resolve(name: str, params: ObjectiveParams) -> Objective:
    """The objective of one column of the grid; raises ParamsError that names the knob and the reason."""
    preset = PRESETS[params.preset]
    given: dict[str, Any] = {knob: value for knob, value in params.model_dump(exclude={"preset"}).items() if value is not None}
    cell = _Cell(name, params.preset, given)
    if "select" in given and given["select"] == "random":  # the preset's score and threshold belong to its own selection
        given = {"scope": "step_lagged", "threshold_nats": None, "threshold_value": None, **given}
    objective = replace(preset, **_replacing_thresholds(preset, given))
    _refuse_given(cell, preset, objective)
    refuse_impossible(objective, f"params.yaml: objective.{name}")
    return objective


def resolve_all(params: Params) -> dict[str, Objective]:
    """Every entry of `objective`, checked against what the other sections give it."""
    objectives = {name: resolve(name, section) for name, section in params.objective.items()}
    for name, objective in objectives.items():
        _refuse_missing_scores(name, objective, params.token_scores)
        _refuse_cache(name, objective, params.teacher_cache)
        if objective.warmup_steps >= params.training.num_steps:
            raise ParamsError(
                f"params.yaml: objective.{name}.warmup_steps {objective.warmup_steps}: the mask would never start, for "
                f"training.num_steps is {params.training.num_steps}"
            )
    return objectives


def warnings_of(objective: Objective) -> list[str]:
    """What is allowed, computed and probably not wanted."""
    found = []
    is_static = objective.scores and objective.score in STATIC_SCORES
    if is_static and objective.select == "high" and not objective.distils:
        found.append(
            "a static mask without distillation: the unselected tokens are never trained, so the most likely of them is driven "
            "to probability 0 (docs/objective.md). Set distil_on: rest, or a score of the student"
        )
    if objective.scores and objective.score == "student_nll" and objective.select == "high" and objective.threshold is not None:
        found.append(
            f"an absolute threshold on the student's own loss pins unlearned tokens near probability "
            f"exp(-{objective.threshold:g}): they leave the mask there"
        )
    return found


class _Cell:
    """Names the place in every message."""

    def __init__(self, name: str, preset: str, given: dict[str, Any]) -> None:
        self.name, self.preset, self.given = name, preset, given

    def refuse(self, knobs: tuple[str, ...], reason: str) -> None:
        for knob in knobs:
            if knob in self.given:
                raise ParamsError(
                    f"params.yaml: objective.{self.name}.{knob}: no effect with preset {self.preset} ({reason}); remove the key"
                )

    def fault(self, knob: str, reason: str) -> ParamsError:
        return ParamsError(f"params.yaml: objective.{self.name}.{knob}: {reason}")


def _replacing_thresholds(preset: Objective, given: dict[str, Any]) -> dict[str, Any]:
    """`keep` and the two thresholds are one choice: the given one replaces the preset's."""
    replaced = {
        knob: None for knob in ("threshold_nats", "threshold_value") if {"keep", "threshold_nats", "threshold_value"} & set(given)
    }
    return {**replaced, **given}


def _refuse_given(cell: _Cell, preset: Objective, objective: Objective) -> None:
    """Given knobs that have no effect here, though the value would be a fine one elsewhere."""
    if preset.select == "all":
        cell.refuse((*SELECTION_KNOBS, "normalizer"), "it selects every target token")
    if objective.select == "random":
        cell.refuse(("score", "column", "threshold_nats", "threshold_value", "scope"), "random selection has no score")
        cell.refuse(("warmup_steps",), "a mask by chance knows as much at the first step as later")
    if objective.distil_on == "none" and objective.prompt_tokens == "ignore":
        cell.refuse(DISTILLATION_KNOBS, "distil_on is none")
    for knob in ("threshold_nats", "threshold_value"):
        if knob in cell.given and "keep" in cell.given:
            raise cell.fault(knob, f"keep and {knob} exclude each other; remove one")
    if objective.scores and objective.threshold is not None:
        cell.refuse(("scope",), "an absolute threshold is the same for every step, micro-batch and sequence")


def _refuse_missing_scores(name: str, objective: Objective, scores: TokenScoresParams) -> None:
    place = f"params.yaml: objective.{name}.score {objective.score}"
    if not objective.scores:
        return
    if objective.score in REFERENCE_SCORES and scores.reference == "none":
        raise ParamsError(
            f"{place} needs a reference model; set token_scores.reference: cross_fit (or local, with reference_path)"
        )
    if objective.score == "mutual_information" and (scores.reference != "cross_fit" or scores.num_members < 4):
        raise ParamsError(
            f"{place} needs an ensemble: two members that have not seen the row; set token_scores.reference: cross_fit and "
            "num_members: 4 or more"
        )
    if objective.score == "column" and objective.column not in scores.columns:
        raise ParamsError(
            f"{place} needs column {objective.column!r}, token_scores.columns names {list(scores.columns)}; add it there, "
            f"and its numbers to {scores.columns_path}"
        )


def _refuse_cache(name: str, objective: Objective, cache: TeacherCacheParams) -> None:
    place = f"params.yaml: objective.{name}"
    if not objective.distils or objective.teacher == "online":
        return
    if objective.temperature != cache.temperature:
        raise ParamsError(
            f"{place}.temperature {objective.temperature} differs from teacher_cache.temperature {cache.temperature}: "
            "a cache holds one temperature"
        )
    if objective.prompt_tokens == "distil_only" and cache.positions != "all":
        raise ParamsError(
            f"{place}.prompt_tokens: distil_only needs the teacher's laws at prompt positions, which the cache leaves out; "
            "set teacher_cache.positions: all, or teacher: online"
        )
