"""Laws of selection: the two sides are disjoint and cover the targets, and what is drawn by chance is drawn again the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.uncertainty.selection import quantile_threshold, random_scores, select_tokens

SCORES = st.lists(st.floats(0, 20, width=32), min_size=1, max_size=60).map(torch.tensor)


@given(scores_N=SCORES, keep=st.floats(0.01, 1))
def test_high_and_low_are_disjoint_and_cover_the_targets_up_to_ties(scores_N: torch.Tensor, keep: float) -> None:
    threshold = quantile_threshold(scores_N, keep, "high")
    high, low = select_tokens(scores_N, threshold, "high"), select_tokens(scores_N, threshold, "low")
    assert bool((high | low).all())
    assert torch.equal(high & low, scores_N == torch.tensor(threshold))


@given(
    scores_N=SCORES.filter(lambda s: len(s.unique()) == len(s)), keep=st.floats(0.01, 1), select=st.sampled_from(["high", "low"])
)
def test_exactly_the_asked_fraction_is_kept_at_least_one_and_from_the_asked_end(
    scores_N: torch.Tensor, keep: float, select: str
) -> None:
    selected = select_tokens(scores_N, quantile_threshold(scores_N, keep, select), select)
    wanted = max(1, round(keep * len(scores_N)))
    ordered = scores_N.sort(descending=select == "high").values
    # Neighbouring floats have no number between them: the midpoint is then the next token's own score.
    assert int(selected.sum()) - wanted in ((0,) if wanted == len(scores_N) or _is_apart(ordered, wanted) else (0, 1))
    assert torch.isin(ordered[:wanted], scores_N[selected]).all()


def _is_apart(ordered: torch.Tensor, wanted: int) -> bool:
    gap = abs(float(ordered[wanted - 1]) - float(ordered[wanted]))
    return gap > 1e-5 * max(1.0, float(ordered.max()))


def test_ties_at_the_threshold_are_all_selected() -> None:
    scores_N = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0])
    for select, expected in (("high", 4), ("low", 4)):
        assert int(select_tokens(scores_N, quantile_threshold(scores_N, 0.5, select), select).sum()) == expected


@pytest.mark.parametrize("select", ["high", "low"])
def test_rounding_noise_does_not_move_the_mask_at_its_own_threshold(select: str) -> None:
    scores_N = torch.rand(101, generator=torch.Generator().manual_seed(0))
    threshold = quantile_threshold(scores_N, 0.5, select)
    exact = select_tokens(scores_N, threshold, select)
    for noise in (1e-6, -1e-6):
        assert torch.equal(select_tokens(scores_N + noise, threshold, select), exact)


def test_random_scores_are_uniform_differ_by_every_part_of_the_key_and_repeat() -> None:
    scores_N = random_scores(20_000, 0, 5, 3)
    assert abs(float((scores_N <= 0.3).float().mean()) - 0.3) < 0.02
    assert torch.equal(scores_N, random_scores(20_000, 0, 5, 3))
    for other in ((1, 5, 3), (0, 6, 3), (0, 5, 4), (5, 0, 3)):
        assert not torch.equal(scores_N, random_scores(20_000, *other))


def test_random_scores_are_the_same_on_every_machine_and_in_every_process() -> None:
    """Python's own hash would do for one process only; pytest starts each with another hash seed."""
    assert random_scores(3, 7, 11, 13).tolist() == pytest.approx([0.426534, 0.900840, 0.102023], abs=1e-6)
