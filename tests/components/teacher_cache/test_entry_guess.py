"""Laws of the guess: it finds what goes with the token before, and leaves totals alone where nothing does."""

import numpy as np
import pytest

from components.teacher_cache.entry_guess import contexts_of, count_contexts, guess_entries
from components.teacher_cache.planner import estimate_total
from tests.conftest import Row, build_rows

VOCABULARY = 30


def test_contexts_are_the_tokens_before_the_kept_ones() -> None:
    row = Row([5, 6, 7, 8], [True, False, True, True])
    assert contexts_of(row, "targets").tolist() == [6, 7]
    assert contexts_of(row, "all").tolist() == [5, 6, 7]
    assert count_contexts([row, row], "targets", 9).tolist() == [0, 0, 0, 0, 0, 0, 2, 2, 0]


def test_every_kept_token_has_a_context() -> None:
    for row in build_rows(20):
        assert len(contexts_of(row, "targets")) == sum(row.is_target[1:])
        assert len(contexts_of(row, "all")) == len(row.input_ids) - 1


@pytest.mark.parametrize(("share_explained", "at_most"), [(1.0, 0.2), (0.0, 1.15)])
def test_the_interval_shrinks_as_far_as_tokens_explain_it_and_hardly_grows_where_they_do_not(
    share_explained: float, at_most: float
) -> None:
    draw = np.random.default_rng(0)
    mean_V = draw.uniform(1, 60, VOCABULARY)
    contexts_R = [draw.integers(*draw.choice([(0, 10), (10, 30)]), size=draw.integers(5, 60)) for _ in range(600)]
    level_R = draw.uniform(1, 60, 600)
    kept_R = [
        share_explained * mean_V[contexts] + (1 - share_explained) * level + draw.normal(0, 1, len(contexts))
        for contexts, level in zip(contexts_R, level_R, strict=True)
    ]
    counts_V = sum(np.bincount(contexts, minlength=VOCABULARY) for contexts in contexts_R)
    sample, probed = contexts_R[:100], [kept.sum() for kept in kept_R[:100]]
    guessed_S, guessed = guess_entries(sample, kept_R[:100], counts_V)
    ours = estimate_total(probed, guessed_S, guessed, 600)
    plain = estimate_total(probed, [len(kept) for kept in sample], sum(len(kept) for kept in contexts_R), 600)
    truth = sum(kept.sum() for kept in kept_R)
    assert ours.relative_error < at_most * plain.relative_error
    assert abs(ours.value - truth) < 1.5 * ours.relative_error * truth


def test_one_record_alone_is_scaled_by_its_tokens() -> None:
    guessed_S, guessed = guess_entries([np.array([1, 2])], [np.array([3, 3])], np.array([0, 4, 4]))
    assert guessed_S.tolist() == [2.0] and guessed == pytest.approx(24.0)
