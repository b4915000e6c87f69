"""Which target tokens are learned by maximum likelihood: selection by a threshold on a score.

Shapes: N target tokens. True in a mask means selected.
"""

import torch
from torch import Tensor


def quantile_threshold(scores_N: Tensor, keep: float, select: str) -> float:
    """The score at which `select` ("high" or "low") keeps the fraction `keep` of these tokens (at least one)."""
    num_kept = max(1, round(keep * len(scores_N)))
    ordered_N = scores_N.sort(descending=select == "high").values
    return float(ordered_N[num_kept - 1])


def select_tokens(scores_N: Tensor, threshold: float, select: str) -> Tensor:
    """`selected_N`: scores at or beyond the threshold. Ties at the threshold are all selected."""
    return scores_N >= threshold if select == "high" else scores_N <= threshold


def random_scores(num_tokens: int, seed: int, step: int, part: int) -> Tensor:
    """Uniform scores [N] on the CPU that depend only on (seed, step, part): the same again after a resume."""
    generator = torch.Generator().manual_seed(hash((seed, step, part)) % (1 << 63))
    return torch.rand(num_tokens, generator=generator)
