"""Laws of selective prediction: the literal curve, ties that no order decides, an oracle that nothing beats."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.uncertainty.selective import (
    area_under_risk_coverage,
    excess_area_under_risk_coverage,
    risk_coverage_curve,
    selective_risks,
)

TOKENS = st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans()), min_size=1, max_size=40)


def tensors(tokens: list[tuple[float, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([confidence for confidence, _ in tokens]), torch.tensor([float(loss) for _, loss in tokens])


def literal_risks(order: list[tuple[float, float]]) -> list[float]:
    """Mean loss of the first k, one k after the other."""
    risks = []
    for count in range(1, len(order) + 1):
        total = 0.0
        for _, loss in order[:count]:
            total += loss
        risks.append(total / count)
    return risks


def test_without_ties_the_risks_are_those_of_the_sorted_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence_N = torch.rand(200, generator=generator)
    loss_N = (torch.rand(200, generator=generator) > confidence_N).float()
    order = sorted(zip(confidence_N.tolist(), loss_N.tolist(), strict=True), reverse=True)
    assert selective_risks(confidence_N, loss_N).tolist() == pytest.approx(literal_risks(order))
    assert area_under_risk_coverage(confidence_N, loss_N) == pytest.approx(sum(literal_risks(order)) / 200)


def test_ties_are_averaged_over_all_their_orders() -> None:
    tokens = [(0.9, 1.0), (0.5, 0.0), (0.5, 1.0), (0.5, 1.0), (0.1, 0.0)]
    tied = [
        literal_risks([tokens[0], *middle, tokens[4]])
        for middle in itertools.permutations(tokens[1:4])  # the only order that is free
    ]
    expected = [sum(column) / len(column) for column in zip(*tied, strict=True)]
    confidence_N, loss_N = torch.tensor([c for c, _ in tokens]), torch.tensor([e for _, e in tokens])
    assert selective_risks(confidence_N, loss_N).tolist() == pytest.approx(expected)


@settings(deadline=None)
@given(TOKENS, st.randoms())
def test_the_order_in_which_tokens_are_listed_changes_nothing(tokens: list[tuple[float, bool]], draw: object) -> None:
    shuffled = list(tokens)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    assert area_under_risk_coverage(*tensors(tokens)) == pytest.approx(area_under_risk_coverage(*tensors(shuffled)))


@settings(deadline=None)
@given(TOKENS)
def test_nothing_beats_the_oracle_and_the_oracle_has_no_excess(tokens: list[tuple[float, bool]]) -> None:
    confidence_N, loss_N = tensors(tokens)
    excess = excess_area_under_risk_coverage(confidence_N, loss_N)
    assert excess is not None and excess >= -1e-12
    assert excess_area_under_risk_coverage(-loss_N, loss_N) == pytest.approx(0.0)


@settings(deadline=None)
@given(TOKENS)
def test_at_full_coverage_the_risk_is_the_mean_loss(tokens: list[tuple[float, bool]]) -> None:
    confidence_N, loss_N = tensors(tokens)
    assert float(selective_risks(confidence_N, loss_N)[-1]) == pytest.approx(float(loss_N.mean()))
    assert risk_coverage_curve(confidence_N, loss_N, 7)[-1].coverage == 1.0


def test_a_constant_confidence_has_the_mean_loss_everywhere() -> None:
    loss_N = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    assert selective_risks(torch.ones(5), loss_N).tolist() == pytest.approx([0.6] * 5)


def test_the_worst_order_and_the_oracle_by_hand() -> None:
    loss_N = torch.tensor([1.0, 0.0])
    assert area_under_risk_coverage(torch.tensor([0.9, 0.1]), loss_N) == pytest.approx((1 + 1 / 2) / 2)
    assert area_under_risk_coverage(torch.tensor([0.1, 0.9]), loss_N) == pytest.approx((0 + 1 / 2) / 2)
    assert excess_area_under_risk_coverage(torch.tensor([0.9, 0.1]), loss_N) == pytest.approx(1 / 2)


def test_the_exact_oracle_tends_to_the_published_integral() -> None:
    loss_N = (torch.arange(20_000) < 6_000).double()  # r = .3
    oracle = area_under_risk_coverage(-loss_N, loss_N)
    assert oracle == pytest.approx(0.3 + 0.7 * math.log(0.7), abs=1e-3)


def test_a_curve_is_thinned_to_points_of_the_whole_one() -> None:
    generator = torch.Generator().manual_seed(1)
    confidence_N, loss_N = torch.rand(333, generator=generator), torch.rand(333, generator=generator).round()
    risk_N = selective_risks(confidence_N, loss_N)
    points = risk_coverage_curve(confidence_N, loss_N, 50)
    assert len(points) == 50
    for point in points:
        assert point.risk == float(risk_N[round(point.coverage * 333) - 1])
    assert len(risk_coverage_curve(confidence_N[:3], loss_N[:3], 50)) == 3


def test_without_tokens_there_is_nothing() -> None:
    empty = torch.empty(0)
    assert area_under_risk_coverage(empty, empty) is None
    assert excess_area_under_risk_coverage(empty, empty) is None
    assert risk_coverage_curve(empty, empty, 50) == []
