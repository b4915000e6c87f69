"""The known truths of masking on the realised loss, by following the gradient of one context to its end.

One context with a known law p over a few tokens: its free logits are trained on the exact expectation of the objective.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
BASE = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)


def train(is_selected: Callable[[Tensor], Tensor], *, weight: float, steps: int = 40_000, rate: float = 0.1) -> Tensor:
    """The law that gradient descent ends in; `weight` pulls the unselected realisations to BASE."""
    logits = BASE.log().clone().requires_grad_()
    for _ in range(steps):
        q = logits.log_softmax(0)
        selected = is_selected(-q.detach())
        learned = -(P * selected * q).sum()
        pulled = weight * (P * (1 - selected)).sum() * (BASE * (BASE.log() - q)).sum()
        (gradient,) = torch.autograd.grad(learned + pulled, logits)
        logits = (logits - rate * gradient).detach().requires_grad_()
    return logits.softmax(0).detach()


def hard_for_the_base(_: Tensor) -> Tensor:
    """A static mask by the teacher's loss: the tokens that the base finds hard, here the first and the third."""
    return (BASE < 0.25).double()


def test_a_static_mask_with_distillation_ends_at_the_mixture_of_its_parts() -> None:
    """(P_S + w (1 - P_S)) q = p 1_S + w (1 - P_S) q0."""
    selected = hard_for_the_base(P)
    share = float((P * selected).sum())
    for weight in (0.3, 1.0, 3.0):
        expected = (P * selected + weight * (1 - share) * BASE) / (share + weight * (1 - share))
        torch.testing.assert_close(train(hard_for_the_base, weight=weight), expected, rtol=1e-3, atol=1e-4)


def test_a_static_mask_without_distillation_drives_the_token_it_never_trains_to_zero() -> None:
    law = train(hard_for_the_base, weight=0.0)
    assert float(law[1]) < 0.01 and float(law[3]) < 0.01, "a quarter of the truth is denied"
    torch.testing.assert_close(law[[0, 2]], P[[0, 2]] / P[[0, 2]].sum(), rtol=1e-2, atol=1e-3)


def test_an_online_mask_pins_the_likeliest_token_near_the_threshold() -> None:
    """Once its loss falls below the threshold it leaves the mask, and the others push it back: q stays near exp(-threshold)."""
    threshold = 1.2
    law = train(lambda nll: (nll >= threshold).double(), weight=0.0, steps=20_000, rate=0.01)
    assert float(law.max()) == pytest.approx(math.exp(-threshold), abs=0.03)
    assert float(law[0]) < float(P[0]) - 0.1, "the truth is .5"


def test_no_mask_ends_at_the_truth() -> None:
    torch.testing.assert_close(train(lambda nll: torch.ones_like(nll), weight=0.0), P, rtol=1e-3, atol=1e-4)
