"""Weighs the tokens of one micro-batch, chunk by chunk as the fused head meets them.

Shapes: N predicted tokens of the micro-batch, C of them in a chunk.
"""

from torch import Tensor

from components.objectives.objective import Objective
from components.objectives.weights import Threshold, TokenFacts, TokenWeights, token_scores, weigh
from components.training.threshold import ScoreThreshold


class TokenWeigher:
    """Called with each chunk's nll and entropy; gives the likelihood weight and the distillation weight of its tokens, [C]."""

    def __init__(
        self, objective: Objective, facts: TokenFacts, threshold: ScoreThreshold, *, distil_weight: float, selects: bool
    ) -> None:
        self.objective = objective
        self.facts = facts
        self._threshold = threshold
        self._distil_weight = distil_weight
        self._selects = selects
        self._local: Threshold = None

    @property
    def needs_all_scores(self) -> bool:
        """The threshold is a quantile of this very micro-batch: `see_all` must come before the first chunk."""
        return self._selects and self._threshold.is_local

    def see_all(self, nll_N: Tensor, entropy_N: Tensor | None) -> None:
        """The student's nll and entropy on the whole micro-batch, from a pass without gradient."""
        self._local = self._threshold.local(token_scores(self.objective, nll_N, entropy_N, self.facts), self.facts)

    def weigh(self, nll_C: Tensor, entropy_C: Tensor | None, rows: slice) -> TokenWeights:
        return weigh(self.objective, nll_C, entropy_C, self.facts.at(rows), self._threshold_of(rows), self._distil_weight)

    def _threshold_of(self, rows: slice) -> Threshold:
        if not self._selects:
            return None
        found = self._local if self._threshold.is_local else self._threshold.current()
        return found[rows] if isinstance(found, Tensor) else found

    def observe(self, nll_N: Tensor, entropy_N: Tensor | None) -> None:
        """After the forward pass: the scores of the micro-batch's targets enter the next threshold."""
        if self._threshold.is_lagged:
            scores_N = token_scores(self.objective, nll_N, entropy_N, self.facts)
            self._threshold.observe(scores_N[self.facts.is_target_N])
