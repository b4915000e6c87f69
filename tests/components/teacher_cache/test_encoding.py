"""Laws of the encoding: bits follow uncertainty, rounding is bounded, what comes back is a law."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from components.objectives.sparse_target import normalise, sparse_kl
from components.teacher_cache.encoding import choose_num_entries, encode, logprob_of_code, pad_entries, probability_codes
from components.teacher_cache.reduction import reduce_logits
from tests.conftest import stored_laws

N, V = 40, 97
LABELS = torch.arange(N) % V


def logits(seed: int = 0) -> Tensor:
    """From nearly uniform to nearly certain laws."""
    scale_N1 = torch.linspace(0.1, 12.0, N)[:, None]
    return scale_N1 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tail_mass", [0.5, 0.1, 0.03, 0.001])
def test_a_token_keeps_the_fewest_entries_that_leave_the_tail_small_enough(tail_mass: float) -> None:
    laws = reduce_logits(logits(), LABELS, max_entries=64, temperature=1.0)
    kept_N = choose_num_entries(laws.outside_logprob_NK, tail_mass)
    sorted_NV = logits().double().softmax(1).sort(1, descending=True).values
    for probabilities, kept in zip(sorted_NV, kept_N.tolist(), strict=True):
        outside = 1 - probabilities.cumsum(0)
        assert kept == 64 or outside[kept - 1] <= tail_mass + 1e-6
        assert kept == 1 or outside[kept - 2] > tail_mass - 1e-6
    assert kept_N.min() < 3 and kept_N.max() > 30, "bits follow uncertainty"


def test_without_a_tail_mass_every_token_keeps_all_it_may() -> None:
    laws = reduce_logits(logits(), LABELS, max_entries=20, temperature=1.0)
    assert (choose_num_entries(laws.outside_logprob_NK, 0.0) == 20).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_probability_is_rounded_by_at_most_half_a_step_of_its_square_root(bits: int) -> None:
    probabilities = torch.cat([torch.logspace(-8, 0, 500, dtype=torch.float64), torch.tensor([1.0])])
    stored = logprob_of_code(bits)[probability_codes(probabilities.log(), bits)]
    gap = np.abs(np.exp(stored.astype(np.float64) / 2) - probabilities.sqrt().numpy())
    step = 1 / (2**bits - 1)
    assert (gap <= 0.5 * step + 1e-7).all() or (probabilities.sqrt().numpy()[gap > 0.5 * step + 1e-7] < step).all()
    assert np.isfinite(stored).all(), "code 0, whose logprob is -inf, is never written"


@pytest.mark.parametrize("tail_mass", [0.2, 0.03, 0.0])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_what_comes_back_is_a_law_and_a_student_equal_to_it_pays_nothing_and_feels_nothing(tail_mass: float, bits: int) -> None:
    teacher = stored_laws(logits(), LABELS, 64, tail_mass=tail_mass, probability_bits=bits)
    torch.testing.assert_close(normalise(teacher).exp().sum(1), torch.ones(N))
    # A student whose buckets are the stored ones: entries as stored, the tail shared equally.
    buckets_NB = normalise(teacher).double()
    num_entries_N = (~teacher.is_empty_NK).sum(1)
    student_NV = (buckets_NB[:, -1] - (V - num_entries_N).double().log())[:, None].repeat(1, V)
    for row in range(N):
        count = int(num_entries_N[row])
        student_NV[row, teacher.entry_ids_NK[row, :count]] = buckets_NB[row, :count]
    student_NV.requires_grad_()
    kl_N = sparse_kl(student_NV, teacher, 1.0)
    (gradient_NV,) = torch.autograd.grad(kl_N.sum(), student_NV)
    assert float(kl_N.detach().abs().max()) < 1e-6 and float(gradient_NV.abs().max()) < 1e-6  # float32 of the buckets


@pytest.mark.parametrize(("bits", "largest_kl", "largest_gradient"), [(12, 1e-5, 3e-4), (16, 2e-6, 5e-5)])
def test_a_student_equal_to_the_teacher_pays_no_more_than_rounding(bits: int, largest_kl: float, largest_gradient: float) -> None:
    teacher = stored_laws(logits(), LABELS, 64, tail_mass=0.03, probability_bits=bits)
    student_NV = logits().requires_grad_()
    kl_N = sparse_kl(student_NV, teacher, 1.0)
    (gradient_NV,) = torch.autograd.grad(kl_N.sum(), student_NV)
    assert float(kl_N.detach().min()) >= 0 - 1e-6 and float(kl_N.detach().max()) < largest_kl
    assert float(gradient_NV.abs().max()) < largest_gradient


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_divergence_is_never_negative_and_never_more_than_that_of_the_full_laws(seed: int) -> None:
    student_NV = logits(seed)
    dense_N = torch.nn.functional.kl_div(
        student_NV.log_softmax(1), logits().log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    for tail_mass in (0.3, 0.03, 0.0):
        kl_N = sparse_kl(student_NV, stored_laws(logits(), LABELS, 64, tail_mass=tail_mass), 1.0)
        assert (kl_N >= 0).all() and (kl_N <= dense_N + 1e-3).all()


def test_the_columns_are_those_of_the_exact_law_and_a_far_rank_is_said_to_be_far() -> None:
    laws = reduce_logits(logits(), LABELS, max_entries=8, temperature=2.0)
    laws.label_rank_N[0] = 200_000
    columns = encode(laws, 0.03, 12).columns
    logprobs_NV = logits().log_softmax(1)
    np.testing.assert_allclose(columns["label_logprob"], logprobs_NV.gather(1, LABELS[:, None]).squeeze(1), atol=1e-5)
    np.testing.assert_allclose(columns["entropy"], torch.special.entr(logprobs_NV.exp()).sum(1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(columns["log_partition"], logits().logsumexp(1), rtol=1e-6)
    assert columns["label_rank"][0] == 65535
    assert math.isclose(sum(column.itemsize for column in columns.values()), 17)


def test_ragged_entries_become_a_rectangle_whose_empty_places_repeat_an_own_id() -> None:
    ids_NK, logprobs_NK = pad_entries(
        np.array([4, 9, 1, 7, 2], dtype=np.int32),
        np.log(np.array([0.6, 0.3, 0.9, 0.5, 0.2], dtype=np.float32)),
        np.array([2, 1, 2]),
    )
    assert ids_NK.tolist() == [[4, 9], [1, 1], [7, 2]]
    assert (logprobs_NK == -torch.inf).tolist() == [[False, False], [False, True], [False, False]]
    empty_ids_NK, _ = pad_entries(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint8))
    assert empty_ids_NK.shape == (0, 1)
