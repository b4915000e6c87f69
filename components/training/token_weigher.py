"""Weighs the tokens of one micro-batch, chunk by chunk as the fused head meets them.

Shapes: N predicted tokens of the micro-batch, C of them in a chunk.
"""

from torch import Tensor

from components.objectives.fused_head import HeadStatistics
from components.objectives.objective import Objective
from components.objectives.row_loss import TokenChunk
from components.objectives.weights import Threshold, TokenFacts, TokenWeights, select, token_scores, weigh, weights_of
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
        self._surveyed_N: Tensor | None = None

    @property
    def needs_all_scores(self) -> bool:
        """The threshold is a quantile of this very micro-batch: `see_all` must come before the first chunk."""
        return self._selects and self._threshold.is_local

    def see_all(self, statistics: HeadStatistics) -> None:
        """The student's nll and entropy on the whole micro-batch, from a pass without gradient."""
        self._surveyed_N = token_scores(self.objective, statistics.nll_N, statistics.entropy_N, self.facts)
        self._local = self._threshold.local(self._surveyed_N, self.facts)

    def __call__(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        weights = self._weights(chunk, self.facts.at(chunk.rows), self._threshold_of(chunk.rows))
        return weights.mle_N, weights.distil_N

    def _weights(self, chunk: TokenChunk, facts: TokenFacts, threshold: Threshold) -> TokenWeights:
        if self._surveyed_N is None:
            return weigh(self.objective, chunk.nll_C, chunk.entropy_C, facts, threshold, self._distil_weight)
        # The scores that made the threshold, not those of this pass: where every token of a row is kept, the threshold is the
        # score of one of them, and the last bit of the same number computed again would decide over it.
        selected_C = select(self.objective, self._surveyed_N[chunk.rows], facts, threshold)
        return weights_of(self.objective, selected_C, chunk.nll_C, chunk.entropy_C, facts, self._distil_weight)

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
