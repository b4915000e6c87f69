"""Laws of the divergences between full laws, against torch's own KL and literal sums."""

import pytest
import torch
from torch import Tensor

from components.objectives.divergences import divergence, jensen_shannon, mix_laws, skewed_kl
from components.objectives.objective import Divergence

N, V = 7, 13
NAMES: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jsd", "skew")


def law(seed: int) -> Tensor:
    return (3 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(1)


def kl(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(q_NV.log(), p_NV, reduction="none").sum(1)


def test_each_is_its_formula() -> None:
    p, q = law(0).exp(), law(1).exp()
    half, skewed = (p + q) / 2, 0.1 * p + 0.9 * q
    expected = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, half) + kl(q, half)) / 2, "skew": kl(p, skewed)}
    for name in NAMES:
        torch.testing.assert_close(divergence(name, law(0), law(1)), expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_equal_laws_are_at_distance_zero_with_no_gradient_and_others_further(name: Divergence) -> None:
    logits = law(0).float().requires_grad_()
    distance_N = divergence(name, law(0).float(), logits.log_softmax(1))
    (gradient,) = torch.autograd.grad(distance_N.sum(), logits)
    assert float(distance_N.detach().abs().max()) <= 1e-6 and float(gradient.abs().max()) <= 1e-6
    assert (divergence(name, law(0), law(1)) > 0).all()


def test_jsd_is_symmetric_and_at_most_log_two() -> None:
    torch.testing.assert_close(divergence("jsd", law(0), law(1)), divergence("jsd", law(1), law(0)))
    apart = torch.tensor([[0.0, -1e30], [-1e30, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(jensen_shannon(apart[:1], apart[1:]), torch.tensor([2.0], dtype=torch.float64).log())


def test_skew_stays_finite_where_the_student_rules_out_what_the_teacher_says() -> None:
    certain, other = torch.tensor([[0.0, -1e30]]), torch.tensor([[-1e30, 0.0]])
    torch.testing.assert_close(skewed_kl(certain, other), torch.tensor([10.0]).log())


def test_a_mixture_of_laws_is_a_law() -> None:
    torch.testing.assert_close(mix_laws(law(0), law(1), 0.3).exp().sum(1), torch.ones(N, dtype=torch.float64))
