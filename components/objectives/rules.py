"""What no objective may ask for, wherever it comes from: params.yaml, or Python where there is no params.yaml.

Refused, never ignored in silence: a value out of range, a knob without effect, a combination that cannot be computed. What
depends on the knobs that params.yaml gives, or on its other sections, is in components.objectives.resolve.
"""

from dataclasses import fields

from pydantic import ValidationError

from components.errors import ParamsError
from components.objectives.objective import NEVER_NEGATIVE_SCORES, SCORES_NOT_IN_NATS, STATIC_SCORES, Objective
from components.params import ObjectiveParams


def refuse_impossible(objective: Objective, place: str) -> None:
    """Raises ParamsError `<place>.<knob>: <reason>`."""
    for refuse in (_refuse_values, _refuse_knobs_without_effect, _refuse_selection, _refuse_distillation):
        refuse(objective, place)


def _refuse_values(objective: Objective, place: str) -> None:
    """Words and ranges are those of params.yaml; `all` cannot be asked for there, only by a preset."""
    knobs = {field.name: getattr(objective, field.name) for field in fields(objective)}
    if objective.select == "all":
        del knobs["select"]
    try:
        ObjectiveParams.model_validate({"preset": "sft", **knobs}, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _fault(place, str(fault["loc"][0]), f"{fault['msg']} (found {fault['input']!r})") from None


def _refuse_knobs_without_effect(objective: Objective, place: str) -> None:
    """Those that differ from their default; a default says nothing about what was meant."""
    usual = Objective()
    unused: dict[str, str] = {}
    if not objective.scores:
        unused |= dict.fromkeys(("column", "threshold_nats", "threshold_value"), f"select {objective.select} has no score")
        unused |= {"warmup_steps": f"select {objective.select} knows as much at the first step as later"}
    if objective.select == "all":
        unused |= dict.fromkeys(("protect", "normalizer"), "every target token is selected")
    if not objective.distils:
        unused |= dict.fromkeys(("temperature", "divergence", "teacher"), "nothing is distilled")
    for knob, reason in unused.items():
        if getattr(objective, knob) != getattr(usual, knob):
            raise _fault(place, knob, f"no effect, {reason}; leave it out")


def _refuse_selection(objective: Objective, place: str) -> None:
    if not objective.scores:
        return
    if objective.keep == 1 and objective.threshold is None:
        raise _fault(place, "keep", "1.0 selects every target token, and no score decides; use preset sft, or sft_kl")
    if objective.threshold_nats is not None and objective.threshold_value is not None:
        raise _fault(place, "threshold_nats", "threshold_nats and threshold_value exclude each other; remove one")
    if objective.threshold_nats is not None and objective.score in SCORES_NOT_IN_NATS:
        raise _fault(place, "threshold_nats", f"score {objective.score} is not in nats; give threshold_value, in its own unit")
    if objective.threshold_value is not None and objective.score not in SCORES_NOT_IN_NATS:
        raise _fault(place, "threshold_value", f"score {objective.score} is in nats; give threshold_nats")
    _refuse_unreachable(objective, place)
    if objective.scope == "dataset" and objective.threshold is None and objective.score not in STATIC_SCORES:
        allowed = ", ".join(STATIC_SCORES)
        raise _fault(
            place, "scope", f"'dataset' needs a score that does not move ({allowed}); {objective.score} follows the student"
        )
    if (objective.column is None) == (objective.score == "column"):
        raise _fault(place, "column", "score: column and the column's name go together; give both or neither")
    if objective.token_weight == "entropy" and objective.score == "entropy":
        raise _fault(
            place, "token_weight", "'entropy' weighs by another entropy (of the top 20) than score: entropy selects by; use one"
        )


def _refuse_unreachable(objective: Objective, place: str) -> None:
    """A threshold that no score can lie beyond, or that every score does, makes a mask that is none."""
    threshold = objective.threshold
    if threshold is None:
        return
    if objective.score in NEVER_NEGATIVE_SCORES and threshold < 0:
        raise _fault(place, "threshold_nats", f"{threshold:g} is below every {objective.score}, which is never negative")
    if objective.score == "probability_gain" and not -1 < threshold < 1:
        raise _fault(place, "threshold_value", f"{threshold:g} is outside the gains of probability, which lie between -1 and 1")


def _refuse_distillation(objective: Objective, place: str) -> None:
    if objective.largest_distil_weight == 0:
        raise _fault(place, "distil_weight", "0 distils nothing, whatever distil_on says; set distil_on: none")
    if objective.distil_on == "rest" and objective.select == "all":
        raise _fault(place, "distil_on", "'rest' is empty when every token is selected; use all")
    if objective.distils and objective.divergence != "forward_kl" and objective.teacher == "cache":
        raise _fault(
            place,
            "divergence",
            f"{objective.divergence} needs the teacher's full law, the cache holds its top entries and one tail; "
            "set teacher: online (one more forward pass a step) or divergence: forward_kl",
        )


def _fault(place: str, knob: str, reason: str) -> ParamsError:
    return ParamsError(f"{place}.{knob}: {reason}")
