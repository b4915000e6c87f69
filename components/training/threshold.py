"""The threshold on the score: one number for all micro-batches and ranks of a step, unless the objective asks for another scope.

* step_lagged: a quantile of the scores of earlier steps. A quantile of the current micro-batch would make the mask depend on how
  the step is split; a lagged one does not, and it needs no second pass. It starts from the base model's own scores (the
  student's at step 0), is a running mean of the steps' quantiles, and travels in the checkpoint.
* dataset: the quantile of a score that never moves, over all training targets.
* micro_batch, sequence: the quantile of the micro-batch at hand, or of each of its rows.

Shapes: N predicted tokens of a micro-batch.
"""

from typing import Any

import torch
from torch import Tensor

from components.objectives.objective import Objective
from components.objectives.weights import Threshold, TokenFacts, sequence_thresholds
from components.uncertainty.selection import quantile_threshold

NEWEST_WEIGHT = 0.5


class ScoreThreshold:
    """State: the threshold in force and the scores seen since the last step."""

    def __init__(self, objective: Objective, initial_scores_N: Tensor | None) -> None:
        self._objective = objective
        self._pending: list[Tensor] = []
        self.value: float | None = objective.threshold
        if objective.needs_threshold and not self.is_local and initial_scores_N is not None and len(initial_scores_N):
            self.value = quantile_threshold(initial_scores_N, objective.keep, objective.select)

    @property
    def is_lagged(self) -> bool:
        """It moves with the steps: a quantile of the scores of earlier steps."""
        return self._objective.needs_threshold and self._objective.scope == "step_lagged"

    @property
    def is_local(self) -> bool:
        """It is a quantile of the micro-batch at hand, whose scores must be known before any token is weighed."""
        return self._objective.needs_threshold and self._objective.scope in ("micro_batch", "sequence")

    def current(self) -> float | None:
        """The threshold known before the forward pass; None selects everything: none is needed, or not before the first step."""
        return self.value

    def local(self, scores_N: Tensor, facts: TokenFacts) -> Threshold:
        """The threshold of this micro-batch; its targets' scores alone count."""
        own_N = scores_N[facts.is_target_N]
        if not len(own_N):
            return self.value
        if self._objective.scope == "sequence":  # there is no one number, and none is logged
            return sequence_thresholds(self._objective, scores_N, facts)
        self.value = quantile_threshold(own_N, self._objective.keep, self._objective.select)
        return self.value

    def observe(self, scores_N: Tensor) -> None:
        """Scores of target tokens of the running step."""
        if self.is_lagged:
            self._pending.append(scores_N.detach())

    def take_pending(self) -> Tensor:
        """Scores of the step that ends, [N]; the caller joins those of the other ranks."""
        scores_N = torch.cat(self._pending) if self._pending else torch.empty(0)
        self._pending = []
        return scores_N

    def advance(self, scores_N: Tensor) -> None:
        """Move to the next step with the scores of the whole step that has just ended."""
        if not self.is_lagged or not len(scores_N):
            return
        newest = quantile_threshold(scores_N.float(), self._objective.keep, self._objective.select)
        self.value = newest if self.value is None else NEWEST_WEIGHT * newest + (1 - NEWEST_WEIGHT) * self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]
