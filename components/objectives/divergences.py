"""Divergences between full laws.

Shapes: N target tokens, V vocabulary. In nats, per token.
"""

import math

import torch
from torch import Tensor

SKEW = 0.1


def divergence(name: str, teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """D(teacher, student) of two laws given as logprobs, [N]."""
    p_NV, q_NV = teacher_NV.exp(), student_NV.exp()
    if name == "forward_kl":
        return (p_NV * (teacher_NV - student_NV)).sum(1)
    if name == "reverse_kl":
        return (q_NV * (student_NV - teacher_NV)).sum(1)
    if name == "jsd":
        mean_NV = torch.logaddexp(teacher_NV, student_NV) - math.log(2)
        return 0.5 * ((p_NV * (teacher_NV - mean_NV)).sum(1) + (q_NV * (student_NV - mean_NV)).sum(1))
    assert name == "skew", name
    mixed_NV = torch.logaddexp(teacher_NV + math.log(SKEW), student_NV + math.log(1 - SKEW))
    return (p_NV * (teacher_NV - mixed_NV)).sum(1)
