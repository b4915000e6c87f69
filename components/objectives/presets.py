"""The objective and its presets. Pure Python: params.yaml names a preset, `resolve` gives every knob a value.

    L = (1/D) * sum_t [ m_t * nll_t + distil_weight * w_t * T^2 * KL(teacher_t || student_t) ]

over the target tokens t of the whole optimiser step (all micro-batches, all ranks); m_t = 1 where the token is selected,
w_t = 1 where it is distilled, D = the number of target tokens of the step.

The full text of arXiv 2503.16511 was not available to us. Its abstract and published summaries say: maximum likelihood on
the high-loss tokens, self-distillation to the frozen initial model on the others. Thresholds, weights and the divergence
are ours.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from components.errors import ParamsError
from components.params import ObjectiveParams

Select = Literal["all", "high", "low", "random"]
DistilOn = Literal["none", "rest", "all", "selected"]


@dataclass(frozen=True)
class Objective:
    """Every knob of the loss. `keep` is a fraction of target tokens, `threshold_nats` an absolute score that replaces it."""

    select: Select = "high"
    score: Literal["student_nll", "teacher_nll", "entropy", "excess"] = "student_nll"
    keep: float = 0.5
    threshold_nats: float | None = None
    scope: Literal["step_lagged", "micro_batch"] = "step_lagged"
    distil_on: DistilOn = "rest"
    distil_weight: float = 1.0
    temperature: float = 1.0
    warmup_steps: int = 0

    @property
    def needs_teacher(self) -> bool:
        return self.distils or (self.select in ("high", "low") and self.score in ("teacher_nll", "excess"))

    @property
    def distils(self) -> bool:
        return self.distil_on != "none" and self.distil_weight > 0

    @property
    def needs_threshold(self) -> bool:
        """A quantile is needed; keeping every token needs none (one of earlier steps would leave out the later extremes)."""
        return self.select in ("high", "low") and self.threshold_nats is None and self.keep < 1


PRESETS: dict[str, Objective] = {
    # Supervised fine-tuning: cross-entropy on every target token.
    "sft": Objective(select="all", distil_on="none"),
    # Cross-entropy on every token plus KL to the frozen base on every token (learning without forgetting, Li & Hoiem 2016).
    "sft_kl": Objective(select="all", distil_on="all"),
    # Maximum likelihood on the high-loss half alone: one of the two parts of arXiv 2503.16511 (the other half is ignored).
    "masked_mle": Objective(distil_on="none"),
    # Both parts: maximum likelihood on the high-loss half, self-distillation on the rest (after arXiv 2503.16511).
    "uncertainty_aware": Objective(),
    # Control for masked_mle: as many tokens, chosen by chance.
    "random_mask": Objective(select="random", distil_on="none"),
}

SELECTION_KNOBS = ("select", "score", "keep", "threshold_nats", "scope", "warmup_steps")


def resolve(name: str, params: ObjectiveParams) -> Objective:
    """The preset's knobs with the ones set in params.yaml on top; a knob that could have no effect is refused, not ignored."""
    preset = PRESETS[params.preset]
    given: dict[str, Any] = {knob: value for knob, value in params.model_dump(exclude={"preset"}).items() if value is not None}
    if preset.select == "all":
        _refuse(name, params.preset, given, SELECTION_KNOBS, "it selects every target token")
    objective = replace(preset, **given)
    if objective.select == "random":
        _refuse(name, params.preset, given, ("score", "threshold_nats", "scope"), "random selection has no score")
    if objective.distil_on == "none":
        _refuse(name, params.preset, given, ("distil_weight", "temperature"), "distil_on is none")
    if objective.distil_weight == 0:
        _refuse(name, params.preset, given, ("temperature",), "distil_weight is 0")
    if objective.threshold_nats is not None:
        _refuse(name, params.preset, given, ("scope",), "threshold_nats is the same for every step and micro-batch")
    if objective.threshold_nats is not None and "keep" in given:
        raise ParamsError(f"params.yaml: objective.{name}: keep and threshold_nats exclude each other; remove one")
    if objective.distil_on == "rest" and objective.select == "all":
        raise ParamsError(f"params.yaml: objective.{name}.distil_on: 'rest' is empty when every token is selected; use all")
    return objective


def _refuse(name: str, preset: str, given: dict[str, Any], knobs: tuple[str, ...], reason: str) -> None:
    for knob in knobs:
        if knob in given:
            raise ParamsError(f"params.yaml: objective.{name}.{knob}: no effect with preset {preset} ({reason}); remove the key")
