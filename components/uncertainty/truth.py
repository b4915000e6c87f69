"""The truth about a token, where it is known: how much of the uncertainty could be learned, and how much is chance.

Shapes: N target tokens, V vocabulary, W entries of the widest law. In nats. Laws are mappings token id -> probability.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

DETERMINED_NATS = 0.1
"""At most so much entropy of the truth: the token is determined by what stands before it, as good as."""
UNKNOWN_NATS = 0.693
"""More than log 2 from the truth: a determined token gets less than half of the probability that it should."""


def against_laws(laws: Sequence[Mapping[int, float] | None], logprobs_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of the true law (aleatoric) and KL(truth || model) (epistemic) of each target, [N] on the CPU; NaN: no law."""
    width = max((len(law) for law in laws if law is not None), default=0)
    if not width:
        unknown_N = torch.full((len(laws),), float("nan"))
        return unknown_N, unknown_N
    ids_NW = torch.tensor([[*(law or ()), *[0] * (width - len(law or ()))] for law in laws])
    true_NW = torch.tensor([[*(law or {}).values(), *[0.0] * (width - len(law or ()))] for law in laws])
    gap_NW = true_NW.log() - logprobs_NV.gather(1, ids_NW.to(logprobs_NV.device)).cpu()
    known_N = torch.tensor([law is not None for law in laws])
    entropy_N = torch.special.entr(true_NW).sum(1).masked_fill(~known_N, float("nan"))
    divergence_N = torch.where(true_NW > 0, true_NW * gap_NW, 0.0).sum(1)
    return entropy_N, divergence_N.masked_fill(~known_N, float("nan"))
