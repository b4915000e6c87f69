"""Laws of calibration: literal definitions, and None rather than a made-up number where there is nothing to say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from components.uncertainty.calibration import (
    expected_calibration_error,
    law_brier,
    rank_correlation,
    reliability_curve,
)


def draw(num_tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(num_tokens, generator=generator)
    return confidence, torch.rand(num_tokens, generator=generator) < confidence


def test_every_token_is_in_exactly_one_bin_with_its_edges_in_the_lower_one() -> None:
    edges = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    bins = reliability_curve(edges, torch.ones(5, dtype=torch.bool), 4)
    assert [bin_.num_tokens for bin_ in bins] == [2, 1, 1, 1]
    assert [(bin_.lower, bin_.upper) for bin_ in bins] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]


def test_the_error_equals_a_literal_reference() -> None:
    confidence, is_correct = draw(500)
    expected = 0.0
    for number in range(10):
        inside = (confidence > number / 10) & (confidence <= (number + 1) / 10)
        if inside.any():
            expected += (
                float(inside.sum()) / 500 * abs(float(confidence[inside].mean()) - float(is_correct[inside].float().mean()))
            )
    assert expected_calibration_error(reliability_curve(confidence, is_correct, 10)) == pytest.approx(expected, abs=1e-6)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_its_overconfidence() -> None:
    confidence, is_correct = draw(20_000)
    calibrated = expected_calibration_error(reliability_curve(confidence, is_correct, 15))
    certain = expected_calibration_error(reliability_curve(torch.ones(20_000), is_correct, 15))
    assert calibrated is not None and calibrated < 0.03
    assert certain == pytest.approx(1 - float(is_correct.float().mean()), abs=1e-6)


def test_without_tokens_there_is_no_error_and_empty_bins_have_no_accuracy() -> None:
    bins = reliability_curve(torch.empty(0), torch.empty(0, dtype=torch.bool), 3)
    assert expected_calibration_error(bins) is None
    assert all(bin_.accuracy is None and bin_.confidence is None for bin_ in bins)


def test_rank_correlation_is_scipys_spearman_ties_included() -> None:
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, 6, (200,), generator=generator).float()
    second = first + torch.randint(0, 9, (200,), generator=generator).float()
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)


def test_rank_correlation_sees_order_alone_and_says_none_where_there_is_none() -> None:
    values = torch.tensor([0.1, 5.0, 2.0, 9.0])
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(values, torch.ones(4)) is None
    assert rank_correlation(values[:2], values[:2]) is None


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-30, 5), min_size=4, max_size=4), min_size=1, max_size=6))
def test_the_brier_score_of_a_law_is_the_squared_distance_from_what_came(rows: list[list[float]]) -> None:
    logprobs_NV = torch.tensor(rows, dtype=torch.float64).log_softmax(1)
    labels_N = torch.arange(len(rows)) % 4
    expected = [
        sum((float(q) - (token == int(label))) ** 2 for token, q in enumerate(law_V.exp()))
        for law_V, label in zip(logprobs_NV, labels_N, strict=True)
    ]
    assert law_brier(logprobs_NV, labels_N).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_brier_score_of_a_law_is_0_when_certain_and_right_2_when_certain_and_wrong_and_never_negative() -> None:
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]]).expand(2, 3)
    assert law_brier(certain, torch.tensor([0, 2])).tolist() == [0.0, 2.0]
    almost = (torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)) + 20 * torch.eye(5)[0]).log_softmax(1)
    assert bool((law_brier(almost, torch.zeros(2000, dtype=torch.long)) >= 0).all())


def test_the_brier_score_is_proper_the_truth_has_the_best_one() -> None:
    truth = torch.tensor([0.6, 0.3, 0.1])

    def expected(law: torch.Tensor) -> float:
        return float((truth * law_brier(law.log().expand(3, 3), torch.arange(3))).sum())

    for other in ([0.7, 0.2, 0.1], [1 / 3] * 3, [0.5, 0.3, 0.2]):
        assert expected(truth) < expected(torch.tensor(other))
