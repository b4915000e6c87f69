"""The known truths of masking on the realised loss: the real objective on one context, followed by gradient descent to its end.

One context with a known law over four tokens: twenty realisations in exactly its proportions, all with the same free logits, in
float64. So the mean over realisations is the expectation, and where the descent ends is the objective's fixed point.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.sparse_target import TeacherTargets
from components.objectives.token_loss import token_terms
from components.objectives.weights import TokenFacts

LAW = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
BASE = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)
N = 20
LABELS = torch.repeat_interleave(torch.arange(4), (LAW * N).round().long())


def teacher() -> TeacherTargets:
    """The base by its first three tokens and the rest."""
    logprobs = BASE.log()
    return TeacherTargets(
        torch.arange(3).expand(N, 3), logprobs[:3].expand(N, 3), logprobs[3].expand(N), label_logprob_N=logprobs[LABELS]
    )


def facts() -> TokenFacts:
    everything = torch.ones(N, dtype=torch.bool)
    return TokenFacts(everything, torch.zeros(N, dtype=torch.long), teacher_logprob_N=teacher().label_logprob_N)


def descend(objective: Objective, *, steps: int = 4000, rate: float = 1.0) -> Tensor:
    """The law in which gradient descent from the base ends, [4]."""
    logits = BASE.log().clone()
    for _ in range(steps):
        free = logits.clone().requires_grad_()
        terms = token_terms(objective, free.expand(N, 4), LABELS, teacher(), facts(), objective.threshold)
        (gradient,) = torch.autograd.grad(terms.loss_sum / N, free)
        logits = logits - rate * gradient
    return logits.softmax(0)


STATIC = replace(PRESETS["uncertainty_aware_static"], threshold_nats=-math.log(0.25))
"""Learns what the base gives less than a quarter: the first and the third token."""


def test_the_static_mask_is_the_one_meant() -> None:
    terms = token_terms(STATIC, BASE.log().expand(N, 4), LABELS, teacher(), facts(), STATIC.threshold)
    assert LABELS[terms.mle_weight_N > 0].unique().tolist() == [0, 2]


@pytest.mark.parametrize("weight", [0.3, 1.0, 3.0])
def test_a_static_mask_with_distillation_ends_at_the_mixture_of_its_parts(weight: float) -> None:
    """(P_S + w (1 - P_S)) q = p 1_S + w (1 - P_S) q0."""
    selected = (BASE < 0.25).double()
    share = float((LAW * selected).sum())
    expected = (LAW * selected + weight * (1 - share) * BASE) / (share + weight * (1 - share))
    found = descend(replace(STATIC, distil_weight=weight), steps=600)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_static_mask_without_distillation_drives_the_token_it_never_trains_to_zero() -> None:
    law = descend(replace(STATIC, distil_on="none"))
    assert float(law[1]) < 0.01 and float(law[3]) < 0.01, "a third of the truth is denied"
    torch.testing.assert_close(law[[0, 2]], LAW[[0, 2]] / LAW[[0, 2]].sum(), rtol=1e-2, atol=1e-3)


def test_an_online_mask_pins_the_likeliest_token_near_the_threshold() -> None:
    """Once its loss falls below the threshold it leaves the mask, and the others push it back: q stays near exp(-threshold)."""
    threshold = 1.2
    law = descend(replace(PRESETS["masked_mle"], threshold_nats=threshold), rate=0.05)
    assert float(law.max()) == pytest.approx(math.exp(-threshold), abs=0.03)
    assert float(law[0]) < float(LAW[0]) - 0.1, "the truth is .5"


def test_no_mask_ends_at_the_truth() -> None:
    torch.testing.assert_close(descend(PRESETS["sft"], steps=600), LAW, rtol=1e-3, atol=1e-4)
