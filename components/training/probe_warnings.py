"""What a record of looks warns of, in words a person can act on. Pure functions of the record: a resumed run says the same."""

from collections.abc import Sequence
from typing import Any

from components.objectives.objective import Objective
from components.uncertainty.truth import UNKNOWN_NATS

COLLAPSED = 0.05
"""A class whose tokens keep less than this mean weight is not trained by that term any more."""
MIN_CLASS_TOKENS = 8
"""Of fewer tokens a share says little."""
WATCHED = ("end_of_turn", "format")
"""Classes that a model must not lose (it would not stop, or break its format); the objective's `protect` joins them."""
LEARNABLE_SCORES = ("excess", "teacher_excess", "probability_gain", "mutual_information")


def warnings_of(objective: Objective, name: str, steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All warnings of the looks so far, by the step that each holds from. `name`: the objective's key in params.yaml."""
    found = [_follows_noise(objective, name, steps)]
    found += [_weight_collapse(objective, name, steps, watched) for watched in dict.fromkeys((*WATCHED, *objective.protect))]
    return sorted((warning for warning in found if warning is not None), key=lambda warning: int(warning["step"]))


def follows_noise_since(objective: Objective, steps: Sequence[dict[str, Any]]) -> int | None:
    """Index of the first look from which on, to the last one, the mask's score ranks chance above what can be learned.

    None where that is not known, where the last look says otherwise, or where the mask is to avoid high scores (`low`).
    """
    if not objective.scores or objective.select != "high":
        return None
    since = None
    for index, step in enumerate(steps):
        rho = step["scores"].get(objective.score, {"epistemic": None, "aleatoric": None})
        if rho["epistemic"] is None or rho["aleatoric"] is None or rho["aleatoric"] <= rho["epistemic"]:
            since = None
        elif since is None:
            since = index
    return since


def _follows_noise(objective: Objective, name: str, steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    since = follows_noise_since(objective, steps)
    if since is None:
        return None
    first, rho = steps[since]["step"], steps[since]["scores"][objective.score]
    remedy = (
        "a better reference (token_scores.num_steps, token_scores.num_members), or fewer training.num_steps"
        if objective.score in LEARNABLE_SCORES
        else f"fewer training.num_steps (or training.early_stopping.enabled: true), or objective.{name}.score: excess with "
        "token_scores.reference: cross_fit"
    )
    return {
        "step": first,
        "kind": "follows_noise",
        "message": (
            f"objective.{name}: from step {first} on the mask follows noise. Its score {objective.score} ranks tokens by chance "
            f"(Spearman {rho['aleatoric']:+.2f}) more than by what can still be learned ({rho['epistemic']:+.2f}). Try {remedy}"
        ),
    }


def has_collapsed(entry: dict[str, Any], largest_distil_weight: float) -> bool:
    """The class is no longer trained as it should be: its mean likelihood weight is below COLLAPSED, and either nothing holds it
    (the mask leaves it out and it is not distilled, so what is learned elsewhere may undo it), or the model does not know it:
    its mean nll is above log 2. What the model knows may be distilled instead, or weighed down by its token weight (dft, eaft):
    that is meant, and no fault.
    """
    if entry["num_tokens"] < MIN_CLASS_TOKENS or entry["mean_mle_weight"] >= COLLAPSED:
        return False
    is_held = is_distilled(entry, largest_distil_weight) or entry["selected_fraction"] >= COLLAPSED
    return not is_held or entry["mean_student_nll"] > UNKNOWN_NATS


def is_distilled(entry: dict[str, Any], largest_distil_weight: float) -> bool:
    return bool(entry["mean_distil_weight"] > COLLAPSED * largest_distil_weight)


def _weight_collapse(objective: Objective, name: str, steps: Sequence[dict[str, Any]], watched: str) -> dict[str, Any] | None:
    """The first look at which the class has collapsed, if there is one."""
    for step in steps:
        entry = step["classes"].get(watched)
        if entry is not None and has_collapsed(entry, objective.largest_distil_weight):
            break
    else:
        return None
    held = (
        "and they are only distilled: pulled to a base that does not know them either"
        if is_distilled(entry, objective.largest_distil_weight)
        else "and they are not distilled: nothing holds them"
    )
    remedy = (
        f"Remove objective.{name}.token_weight: {objective.token_weight}, which weighs them down"
        if entry["selected_fraction"] >= COLLAPSED
        else f"Set objective.{name}.protect: [{', '.join((*objective.protect, watched))}]"
    )
    return {
        "step": step["step"],
        "kind": "weight_collapse",
        "class": watched,
        "message": (
            f"objective.{name}: at step {step['step']} the {entry['num_tokens']} {watched} tokens looked at keep "
            f"{entry['mean_mle_weight']:.1%} of their likelihood weight, {held} (their mean nll is "
            f"{entry['mean_student_nll']:.2f} nats). {remedy}"
        ),
    }
