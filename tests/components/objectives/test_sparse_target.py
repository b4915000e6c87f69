"""Laws of the sparse teacher: exact at student = teacher for every K, dense KL at K = V, never more than dense KL."""

import itertools

import pytest
import torch
from torch import Tensor

from components.objectives.sparse_target import TeacherTargets, join_targets, label_nll, normalise, sparse_kl
from tests.conftest import stored_laws

N, V = 9, 23
EVERY_K = [1, 2, 5, V - 1, V]


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


def targets(logits_NV: Tensor, num_entries: int, temperature: float = 1.0, *, exact: bool = False) -> TeacherTargets:
    """As the cache holds them, or `exact` in fp32."""
    if exact:
        logprobs = (logits_NV / temperature).log_softmax(1)
        values, ids = logprobs.topk(num_entries, dim=1)
        tail = logprobs.scatter(1, ids, float("-inf")).logsumexp(1)
        return TeacherTargets(ids, values, tail, torch.zeros(N))
    return stored_laws(logits_NV, torch.zeros(N, dtype=torch.long), num_entries, temperature)


def dense_kl(teacher_NV: Tensor, student_NV: Tensor, temperature: float) -> Tensor:
    p, q = (teacher_NV / temperature).log_softmax(1), (student_NV / temperature).log_softmax(1)
    return temperature**2 * (p.exp() * (p - q)).sum(1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("num_entries", EVERY_K)
def test_a_student_equal_to_its_teacher_pays_nothing_and_has_no_gradient(num_entries: int, temperature: float) -> None:
    for exact, largest_gradient in ((True, 1e-6), (False, 2e-4)):  # rounding to the cache's bits
        student = logits(0).requires_grad_()
        kl_N = sparse_kl(student, targets(logits(0), num_entries, temperature, exact=exact), temperature)
        (gradient,) = torch.autograd.grad(kl_N.sum(), student)
        assert float(kl_N.detach().abs().max()) <= 1e-6 * temperature**2, f"exact={exact}"
        assert float(gradient.abs().max()) <= largest_gradient * temperature, f"exact={exact}"


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_all_entries_are_dense_kl_in_value_and_gradient(temperature: float) -> None:
    student = logits(1).requires_grad_()
    sparse = sparse_kl(student, targets(logits(0), V, temperature, exact=True), temperature)
    dense = dense_kl(logits(0), student, temperature)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (sparse, dense)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_fewer_entries_never_cost_more() -> None:
    for seed in range(1, 6):
        values = [sparse_kl(logits(seed), targets(logits(0), k, exact=True), 1.0) for k in range(1, V + 1)]
        for smaller, larger in itertools.pairwise(values):
            assert (smaller <= larger + 1e-5).all()
        assert (values[0] >= -1e-6).all()


@pytest.mark.parametrize("num_entries", EVERY_K)
def test_the_gradient_is_student_minus_teacher_with_the_tail_shared_as_the_student_shares_it(num_entries: int) -> None:
    student = logits(1).requires_grad_()
    teacher = targets(logits(0), num_entries, exact=True)
    (gradient,) = torch.autograd.grad(sparse_kl(student, teacher, 1.0).sum(), student)
    q = student.detach().softmax(1)
    is_tail = torch.ones(N, V).scatter(1, teacher.entry_ids_NK, 0.0)
    tail_share = is_tail * q / (is_tail * q).sum(1, keepdim=True).clamp(min=1e-30)
    p = torch.zeros(N, V).scatter(1, teacher.entry_ids_NK, teacher.entry_logprobs_NK.exp())
    p = p + tail_share * teacher.tail_logprob_N.exp()[:, None]
    torch.testing.assert_close(gradient, q - p, rtol=1e-4, atol=1e-5)


def test_the_order_of_entries_does_not_matter() -> None:
    teacher = targets(logits(0), 6)
    flipped = TeacherTargets(
        teacher.entry_ids_NK.flip(1), teacher.entry_logprobs_NK.flip(1), teacher.tail_logprob_N, teacher.label_logprob_N
    )
    torch.testing.assert_close(sparse_kl(logits(1), teacher, 1.0), sparse_kl(logits(1), flipped, 1.0))


def test_teacher_buckets_sum_to_one_after_rounding_to_sixteen_bits() -> None:
    for num_entries in EVERY_K:
        total = normalise(targets(logits(0), num_entries)).exp().sum(1)
        torch.testing.assert_close(total, torch.ones(N))


def test_a_very_sure_teacher_and_a_very_wrong_student_stay_finite() -> None:
    sure, wrong = logits(0, scale=1.0), logits(0, scale=1.0).requires_grad_()
    sure[:, 0] += 80.0
    boosted = wrong + torch.nn.functional.one_hot(torch.full((N,), 1), V) * 80.0
    for num_entries in EVERY_K:
        kl_N = sparse_kl(boosted, targets(sure, num_entries), 1.0)
        (gradient,) = torch.autograd.grad(kl_N.sum(), wrong, retain_graph=True)
        assert torch.isfinite(kl_N).all() and torch.isfinite(gradient).all()
        assert (kl_N > 50).all()


def test_label_nll_is_cross_entropy_per_token() -> None:
    labels = torch.arange(N)
    expected = -logits(0).log_softmax(1)[torch.arange(N), labels]
    torch.testing.assert_close(label_nll(logits(0), labels), expected)


def test_empty_entries_and_the_company_of_wider_tokens_change_nothing() -> None:
    narrow, wide = (
        stored_laws(logits(seed), torch.zeros(N, dtype=torch.long), V, tail_mass=mass) for seed, mass in ((0, 0.2), (2, 0))
    )
    assert narrow.is_empty_NK.any() and not wide.is_empty_NK.any()
    joined = join_targets([narrow, wide])
    both = torch.cat([logits(1), logits(1)])
    apart = [sparse_kl(logits(1), teacher, 1.0) for teacher in (narrow, wide)]
    torch.testing.assert_close(sparse_kl(both, joined, 1.0), torch.cat(apart))
    for row in range(N):  # the same law without its empty places
        count = int((~narrow.is_empty_NK[row]).sum())
        own = TeacherTargets(
            narrow.entry_ids_NK[row : row + 1, :count],
            narrow.entry_logprobs_NK[row : row + 1, :count],
            narrow.tail_logprob_N[row : row + 1],
            narrow.label_logprob_N[row : row + 1],
        )
        torch.testing.assert_close(sparse_kl(logits(1)[row : row + 1], own, 1.0), apart[0][row : row + 1])
