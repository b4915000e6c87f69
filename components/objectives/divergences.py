"""Divergences between full laws, for a teacher whose logits are all at hand.

Shapes: N tokens, V vocabulary. Values are in nats, per token, and zero where the two laws are equal. The first argument is the
teacher p, the second the student q; whoever wants a gradient through one of them leaves its graph on.
"""

import math

import torch
from torch import Tensor

from components.objectives.objective import Divergence
from components.uncertainty.scores import kl_divergence

JSD_SHARE = 0.5
SKEW_SHARE = 0.1


def divergence(name: Divergence, teacher_logprobs_NV: Tensor, student_logprobs_NV: Tensor) -> Tensor:
    """The named divergence of student from teacher, [N]."""
    if name == "forward_kl":
        return kl_divergence(teacher_logprobs_NV, student_logprobs_NV)
    if name == "reverse_kl":
        return kl_divergence(student_logprobs_NV, teacher_logprobs_NV)
    if name == "jsd":
        return jensen_shannon(teacher_logprobs_NV, student_logprobs_NV)
    return skewed_kl(teacher_logprobs_NV, student_logprobs_NV)


def jensen_shannon(teacher_logprobs_NV: Tensor, student_logprobs_NV: Tensor, share: float = JSD_SHARE) -> Tensor:
    """`share` KL(p || m) + (1 - share) KL(q || m) with m = share p + (1 - share) q, [N] (Agarwal et al. 2024, GKD)."""
    mean_NV = mix_laws(teacher_logprobs_NV, student_logprobs_NV, share)
    return share * kl_divergence(teacher_logprobs_NV, mean_NV) + (1 - share) * kl_divergence(student_logprobs_NV, mean_NV)


def skewed_kl(teacher_logprobs_NV: Tensor, student_logprobs_NV: Tensor, share: float = SKEW_SHARE) -> Tensor:
    """KL(p || share p + (1 - share) q), [N]: finite where the student rules a token out (Ko et al. 2024, DistiLLM)."""
    return kl_divergence(teacher_logprobs_NV, mix_laws(teacher_logprobs_NV, student_logprobs_NV, share))


def mix_laws(first_NV: Tensor, second_NV: Tensor, share: float) -> Tensor:
    """Logprobs of `share` first + (1 - share) second."""
    return torch.logaddexp(first_NV + math.log(share), second_NV + math.log1p(-share))
