"""Laws of the capture: what is kept of a law is exact up to the bits it is kept in, and the tail is never 1 - sum."""

import math

import pytest
import torch
from torch import Tensor

from components.teacher_cache.capture import CapturedTokens, capture_tokens, concatenate, tail_logprob

N, V = 8, 37


def logits(scale: float = 3.0) -> Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(N) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_entries_are_the_most_likely_tokens_of_the_full_softmax(temperature: float) -> None:
    kept = capture_tokens(logits(), LABELS, 6, temperature)
    expected = (logits() / temperature).log_softmax(1).topk(6, dim=1)
    assert torch.equal(kept.entry_ids.long(), expected.indices)
    torch.testing.assert_close(kept.entry_logprobs.float(), expected.values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_entries", [1, 5, V - 1, V])
def test_entries_and_tail_hold_all_of_the_probability(num_entries: int) -> None:
    kept = capture_tokens(logits(), LABELS, num_entries, 1.0)
    total = kept.entry_logprobs.float().exp().sum(1) + kept.tail_logprob.float().exp()
    torch.testing.assert_close(total, torch.ones(N), rtol=0, atol=2e-3)


def test_the_tail_of_a_sure_teacher_is_stored_where_one_minus_sum_would_be_lost() -> None:
    sure = torch.zeros(1, V)
    sure[0, 0] = 30.0
    ids = torch.tensor([[0]])
    logprobs = sure.log_softmax(1)
    exact = math.log((V - 1) * math.exp(-30.0) / (1 + (V - 1) * math.exp(-30.0)))
    assert float(1 - logprobs[0, 0].exp()) == 0.0
    assert float(tail_logprob(logprobs, ids)) == pytest.approx(exact, abs=1e-3)
    assert float(capture_tokens(sure, ids[0], 1, 1.0).tail_logprob) == pytest.approx(exact, abs=0.02)


def test_statistics_are_those_of_the_exact_law_at_temperature_one_whatever_the_caches_temperature() -> None:
    for temperature in (1.0, 4.0):
        kept = capture_tokens(logits(), LABELS, 3, temperature)
        law = torch.distributions.Categorical(logits=logits())
        torch.testing.assert_close(kept.label_logprob, law.log_prob(LABELS))
        torch.testing.assert_close(kept.entropy, law.entropy())
        torch.testing.assert_close(kept.log_partition, logits().logsumexp(1))
        order = logits().argsort(dim=1, descending=True)
        assert kept.label_rank.tolist() == [order[token].tolist().index(int(LABELS[token])) for token in range(N)]
        torch.testing.assert_close(kept.margin, logits().sort(dim=1, descending=True).values[:, :2] @ torch.tensor([1.0, -1.0]))


def test_more_entries_than_vocabulary_keep_the_whole_law_and_an_empty_tail() -> None:
    kept = capture_tokens(logits(), LABELS, V + 10, 1.0)
    assert kept.entry_ids.shape == (N, V) and torch.isneginf(kept.tail_logprob).all()


def test_logits_of_sixteen_bits_are_reduced_in_thirty_two() -> None:
    low = logits().bfloat16()
    torch.testing.assert_close(capture_tokens(low, LABELS, 4, 1.0).entropy, capture_tokens(low.float(), LABELS, 4, 1.0).entropy)


def test_no_target_gives_empty_columns_and_slices_join_again() -> None:
    none = capture_tokens(logits()[:0], LABELS[:0], 4, 1.0)
    assert none.entry_ids.shape == (0, 4) and none.label_logprob.shape == (0,)
    whole = capture_tokens(logits(), LABELS, 4, 1.0)
    parts: list[CapturedTokens] = [whole.slice(0, 3), none, whole.slice(3, N)]
    for name, column in concatenate(parts).items():
        assert torch.equal(column, getattr(whole, name)), name
