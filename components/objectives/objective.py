"""Every knob of the loss, with its value. Pure Python; components.objectives.presets names combinations of them.

    L = (1/D) * sum_t [ m_t * u_t * nll_t + distil_weight * w_t * T^2 * D(teacher_t, student_t) ]

over the target tokens t of the whole optimiser step (all micro-batches, all ranks): m_t = 1 where the token is selected, u_t its
token weight (1 by default), w_t = 1 where it is distilled, D() the divergence, D the normaliser of the step.

The full text of arXiv 2503.16511 was not available to us. Its abstract and published summaries say: maximum likelihood on
the high-loss tokens, self-distillation to the frozen initial model on the others. Thresholds, weights and the divergence
are ours.
"""

from dataclasses import dataclass
from typing import Literal

Select = Literal["all", "high", "low", "random"]
Score = Literal[
    "student_nll", "teacher_nll", "excess", "teacher_excess", "probability_gain", "entropy", "mutual_information", "column"
]
Scope = Literal["step_lagged", "micro_batch", "sequence", "dataset"]
TokenWeight = Literal["none", "probability", "entropy"]
DistilOn = Literal["none", "rest", "all", "selected"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew"]
TokenClass = Literal["end_of_turn", "format", "digit", "first"]

STATIC_SCORES: tuple[Score, ...] = ("teacher_nll", "teacher_excess", "probability_gain", "mutual_information", "column")
"""Known before training: the student does not enter them, so one threshold for the whole dataset is possible."""
REFERENCE_SCORES: tuple[Score, ...] = ("excess", "teacher_excess", "probability_gain")
SCORES_NOT_IN_NATS: tuple[Score, ...] = ("probability_gain", "column")
NEVER_NEGATIVE_SCORES: tuple[Score, ...] = ("student_nll", "teacher_nll", "entropy", "mutual_information")
NUM_TOP_ENTRIES = 20
"""EAFT's entropy is that of the 20 most likely tokens, renormalised."""


@dataclass(frozen=True)
class Objective:
    """`keep`: fraction of target tokens; `threshold_nats` (or `threshold_value`, in the score's own unit) replaces it."""

    select: Select = "high"
    score: Score = "student_nll"
    column: str | None = None
    keep: float = 0.5
    threshold_nats: float | None = None
    threshold_value: float | None = None
    scope: Scope = "step_lagged"
    token_weight: TokenWeight = "none"
    distil_on: DistilOn = "rest"
    distil_weight: float = 1.0
    distil_weight_final: float | None = None
    divergence: Divergence = "forward_kl"
    teacher: Literal["cache", "online"] = "cache"
    temperature: float = 1.0
    normalizer: Literal["target_tokens", "selected_tokens"] = "target_tokens"
    prompt_tokens: Literal["ignore", "distil_only"] = "ignore"
    protect: tuple[TokenClass, ...] = ()
    warmup_steps: int = 0

    @property
    def scores(self) -> bool:
        """Some tokens are chosen by their score."""
        return self.select in ("high", "low")

    @property
    def distils(self) -> bool:
        return (self.distil_on != "none" or self.prompt_tokens == "distil_only") and self.largest_distil_weight > 0

    @property
    def largest_distil_weight(self) -> float:
        return max(self.distil_weight, self.distil_weight_final or 0.0)

    @property
    def needs_teacher(self) -> bool:
        """The teacher's columns of the cache are read (its laws, or the base's logprob of the label)."""
        return (self.distils and self.teacher == "cache") or self.needs_label_logprob

    @property
    def needs_label_logprob(self) -> bool:
        return self.scores and self.score in ("teacher_nll", "teacher_excess", "probability_gain")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of artifacts/token_scores that the score is made of."""
        if not self.scores:
            return ()
        if self.score in REFERENCE_SCORES:
            return ("reference_nll",)
        if self.score == "mutual_information":
            return ("mutual_information",)
        return (self.column,) if self.score == "column" and self.column else ()

    @property
    def threshold(self) -> float | None:
        return self.threshold_value if self.threshold_nats is None else self.threshold_nats

    @property
    def needs_threshold(self) -> bool:
        """A quantile is needed; keeping every token needs none (one of earlier steps would leave out the later extremes)."""
        return self.scores and self.threshold is None and self.keep < 1

    @property
    def is_static(self) -> bool:
        """The mask is the same in every epoch."""
        return self.scores and self.score in STATIC_SCORES and (self.scope == "dataset" or self.threshold is not None)

    @property
    def entropy(self) -> Literal["none", "full", "top20"]:
        """Which entropy of the student's law the weights need."""
        if self.token_weight == "entropy":
            return "top20"
        return "full" if self.scores and self.score == "entropy" else "none"

    def distil_weight_at(self, step: int, num_steps: int) -> float:
        """Constant, or linear from `distil_weight` at the first step to `distil_weight_final` at the last."""
        if self.distil_weight_final is None:
            return self.distil_weight
        share = min(1.0, step / max(1, num_steps - 1))
        return self.distil_weight + share * (self.distil_weight_final - self.distil_weight)
