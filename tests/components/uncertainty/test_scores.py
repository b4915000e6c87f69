"""Laws of the token scores: they are the textbook quantities, and stay numbers at the edges."""

import math

import pytest
import torch

from components.uncertainty.scores import excess_loss, kl_divergence, mutual_information, token_entropy, token_nll, top_entropy

N, V = 7, 11


def laws(seed: int = 0, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*(shape or (N, V)), generator=generator, dtype=torch.float64)).log_softmax(-1)


def test_nll_is_torchs_cross_entropy() -> None:
    labels = torch.arange(N) % V
    expected = torch.nn.functional.nll_loss(laws(), labels, reduction="none")
    assert torch.equal(token_nll(laws(), labels), expected)


def test_entropy_equals_torchs_and_is_largest_for_the_uniform_law() -> None:
    expected = torch.distributions.Categorical(logits=laws()).entropy()
    torch.testing.assert_close(token_entropy(laws()), expected)
    uniform = torch.full((1, V), -math.log(V), dtype=torch.float64)
    torch.testing.assert_close(token_entropy(uniform), torch.tensor([math.log(V)], dtype=torch.float64))
    assert (token_entropy(laws()) < math.log(V)).all()


def test_a_token_ruled_out_counts_nothing_in_entropy_and_mutual_information() -> None:
    half = torch.tensor([[0.5, 0.5, 0.0]]).log()
    torch.testing.assert_close(token_entropy(half), torch.tensor([math.log(2)]))
    other = torch.tensor([[0.0, 1.0, 0.0]]).log()
    assert torch.isfinite(mutual_information(torch.stack([half, other]))).all()


def test_entropy_of_the_top_entries_is_that_of_the_law_they_make_alone() -> None:
    logprobs = laws()
    top = logprobs.exp().sort(dim=1, descending=True).values[:, :4]
    torch.testing.assert_close(top_entropy(logprobs, 4), token_entropy((top / top.sum(1, keepdim=True)).log()))
    torch.testing.assert_close(top_entropy(logprobs + 5.0, 4), top_entropy(logprobs, 4))
    for num_entries in (V, V + 9):
        torch.testing.assert_close(top_entropy(logprobs, num_entries), token_entropy(logprobs))
    assert (top_entropy(logprobs, 4) <= math.log(4)).all() and not top_entropy(logprobs, 1).any()


def test_excess_loss_is_zero_where_student_and_reference_agree() -> None:
    nll = token_nll(laws(), torch.zeros(N, dtype=torch.long))
    assert torch.equal(excess_loss(nll, nll), torch.zeros(N, dtype=torch.float64))


def test_mutual_information_is_zero_for_equal_members_and_log_two_for_two_certain_opposites() -> None:
    torch.testing.assert_close(mutual_information(laws().expand(4, N, V)), torch.zeros(N, dtype=torch.float64))
    opposites = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).clamp(min=1e-30).log()
    torch.testing.assert_close(mutual_information(opposites), torch.tensor([math.log(2)]))


def test_mutual_information_is_never_negative_and_never_above_the_mean_laws_entropy() -> None:
    members = laws(1, 5, N, V)
    information = mutual_information(members)
    mean = members.exp().mean(0).log()
    assert (information >= 0).all() and (information <= token_entropy(mean)).all()


def test_kl_equals_torchs_is_zero_for_equal_laws_and_counts_nothing_where_p_is_zero() -> None:
    p, q = laws(0), laws(1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(kl_divergence(p, q), expected)
    assert torch.equal(kl_divergence(p, p), torch.zeros(N, dtype=torch.float64))
    certain, coin = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(kl_divergence(certain, coin)) == pytest.approx(math.log(2))
    assert float(kl_divergence(certain, certain)) == 0.0
