"""Which target tokens are learned by maximum likelihood: selection by a threshold on a score.

Shapes: N target tokens. True in a mask means selected.
"""

import torch
from torch import Tensor

from components.artifacts import fingerprint_json


def quantile_threshold(scores_N: Tensor, keep: float, select: str) -> float:
    """The score at which `select` ("high" or "low") keeps the fraction `keep` of these tokens (at least one).

    It lies midway between the last token kept and the first one left out: on a token's own score, rounding would decide
    whether that token is selected when its score is computed again in another batch.
    """
    num_kept = max(1, round(keep * len(scores_N)))
    ordered_N = scores_N.sort(descending=select == "high").values
    return float(ordered_N[num_kept - 1 : num_kept + 1].double().mean())


def select_tokens(scores_N: Tensor, threshold: float | Tensor, select: str) -> Tensor:
    """`selected_N`: scores at or beyond the threshold (one, or one for each token). Ties at the threshold are all selected."""
    return scores_N >= threshold if select == "high" else scores_N <= threshold


def random_scores(num_tokens: int, *key: int) -> Tensor:
    """Uniform scores [N] on the CPU that depend only on the key (seed, step, row): the same after a resume, in every split."""
    return torch.rand(num_tokens, generator=keyed_generator(*key))


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator seeded by all of `key`, the same on every machine and Python (the built-in hash promises neither)."""
    return torch.Generator().manual_seed(int(fingerprint_json(key)[:8], 16))
