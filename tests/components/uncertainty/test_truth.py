"""Laws of the truth: literal entropies and divergences, and nothing made up where no law is known."""

import math

import pytest
import torch

from components.uncertainty.truth import against_laws


def test_entropy_and_divergence_equal_a_literal_computation() -> None:
    logprobs_NV = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)
    laws = [{2: 0.5, 3: 0.3, 4: 0.2}, None, {5: 1.0}]
    entropy_N, kl_N = against_laws(laws, logprobs_NV)
    for index, law in enumerate(laws):
        if law is None:
            assert math.isnan(entropy_N[index]) and math.isnan(kl_N[index])
        else:
            assert float(entropy_N[index]) == pytest.approx(-sum(p * math.log(p) for p in law.values()))
            expected = sum(p * (math.log(p) - float(logprobs_NV[index, token])) for token, p in law.items())
            assert float(kl_N[index]) == pytest.approx(expected)


def test_a_determined_token_has_no_entropy_and_costs_its_nll() -> None:
    logprobs_NV = torch.zeros(1, 4).log_softmax(1)
    entropy_N, kl_N = against_laws([{1: 1.0}], logprobs_NV)
    assert float(entropy_N) == 0.0 and float(kl_N) == pytest.approx(math.log(4))


def test_without_any_law_nothing_is_known() -> None:
    entropy_N, kl_N = against_laws([None, None], torch.zeros(2, 4).log_softmax(1))
    assert bool(entropy_N.isnan().all()) and bool(kl_N.isnan().all())
