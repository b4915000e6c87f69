"""Laws of drawing: limits are monotone, ratios are those of the weights, rejected rows come in their share."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data_preparation.sampling import SourceRows, draw_rows, draw_table
from components.errors import DataError


def rows(name: str, num_good: int, num_rejected: int = 0, *, group: str = "", seed: int = 0, **limits) -> SourceRows:
    draw = np.random.default_rng([seed, num_good, num_rejected])
    is_rejected = draw.permutation(np.arange(num_good + num_rejected) < num_rejected)
    return SourceRows(name, group or name, draw.integers(0, 2**64, len(is_rejected), dtype=np.uint64), is_rejected, **limits)


def counts(sources, *, rejected: bool = False) -> list[int]:
    return [
        int(np.count_nonzero(mask & (source.is_rejected == rejected)))
        for source, mask in zip(sources, draw_rows(sources), strict=True)
    ]


SIZES = st.integers(1, 60)


@given(st.lists(st.tuples(SIZES, st.integers(0, 9)), max_size=4))
def test_without_limits_everything_is_drawn(sizes) -> None:
    sources = [rows(str(index), *size) for index, size in enumerate(sizes)]
    assert all(mask.all() for mask in draw_rows(sources))


@given(SIZES, st.integers(0, 30), st.integers(1, 70), st.integers(1, 70))
def test_a_higher_limit_only_adds_rows(num_good, num_rejected, first, second) -> None:
    low, high = sorted((first, second))
    [few], [more] = (draw_rows([rows("a", num_good, num_rejected, max_examples=limit)]) for limit in (low, high))
    assert not (few & ~more).any()


@given(SIZES, st.integers(0, 30), st.integers(1, 70))
def test_a_limit_gives_that_many_good_rows_and_of_the_rejected_rows_the_same_share(num_good, num_rejected, limit) -> None:
    source = rows("a", num_good, num_rejected, max_examples=limit)
    drawn = min(limit, num_good)
    assert counts([source]) == [drawn]
    assert abs(counts([source], rejected=True)[0] - num_rejected * Fraction(drawn, num_good)) <= Fraction(1, 2)


@given(SIZES, SIZES, st.integers(1, 40))
def test_a_drawn_row_stays_drawn_unless_as_many_new_rows_come_before_it(num_old, num_new, limit) -> None:
    old, new = rows("a", num_old, seed=1), rows("a", num_new, seed=2)
    both = SourceRows(
        "a", "a", np.concatenate([old.content_hash, new.content_hash]), np.zeros(num_old + num_new, bool), None, limit
    )
    [before] = draw_rows([SourceRows("a", "a", old.content_hash, old.is_rejected, None, limit)])
    [after] = draw_rows([both])
    assert not (after[:num_old] & ~before).any(), "no old row is drawn that was not drawn before"
    lost = np.count_nonzero(before) - np.count_nonzero(after[:num_old])
    assert lost <= np.count_nonzero(after[num_old:])


@given(st.permutations(range(30)), st.integers(1, 30))
def test_the_order_of_the_rows_does_not_choose_among_them(order, limit) -> None:
    source = rows("a", 30, max_examples=limit)
    moved = SourceRows("a", "a", source.content_hash[order], source.is_rejected[order], None, limit)
    assert (draw_rows([source])[0][order] == draw_rows([moved])[0]).all()


WEIGHTED = st.lists(st.tuples(st.integers(30, 80), st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0, 3.0])), min_size=1, max_size=4)


@given(WEIGHTED)
def test_weighted_sources_stand_in_the_ratio_of_their_weights_with_as_many_rows_as_there_are(sizes) -> None:
    sources = [rows(str(index), size, weight=weight) for index, (size, weight) in enumerate(sizes)]
    exact = [Fraction(repr(weight)) for _, weight in sizes]
    scale = min(size / weight for (size, _), weight in zip(sizes, exact, strict=True))
    found = counts(sources)
    assert all(weight * scale - 1 < count <= weight * scale for count, weight in zip(found, exact, strict=True))
    assert any(count == size for count, (size, _) in zip(found, sizes, strict=True)), "the scarcest is drawn whole"


@given(WEIGHTED, st.integers(30, 90), st.integers(30, 90))
def test_raising_the_limit_of_one_weighted_source_takes_no_row_from_any(sizes, first, second) -> None:
    def drawn(limit):
        return draw_rows(
            [
                rows(str(index), size, weight=weight, max_examples=None if index else limit)
                for index, (size, weight) in enumerate(sizes)
            ]
        )

    low, high = sorted((first, second))
    assert not any((few & ~more).any() for few, more in zip(drawn(low), drawn(high), strict=True))


def test_weights_are_the_decimals_that_were_written() -> None:
    """0.3 / 0.1 is less than 3 in binary, which would cost a row."""
    assert counts([rows("a", 300, weight=0.3), rows("b", 100, weight=0.1)]) == [300, 100]


def test_a_source_without_a_weight_is_drawn_in_full_beside_weighted_ones() -> None:
    assert counts([rows("a", 50), rows("b", 90, weight=1), rows("c", 30, weight=2)]) == [50, 15, 30]


def test_a_limit_counts_before_the_weights_are_applied() -> None:
    assert counts([rows("a", 100, weight=1.0, max_examples=10), rows("b", 100, weight=3.0)]) == [10, 30]


def test_the_files_of_a_group_share_one_weight_and_one_limit() -> None:
    shards = [rows(f"set/{index}", 40, 4, group="set", seed=index, max_examples=30) for index in range(3)]
    assert sum(counts(shards)) == 30 and sum(counts(shards, rejected=True)) == 3
    assert min(counts(shards)) > 0, "the hash chooses, not the first file"
    assert counts([rows("a", 50, weight=1.0), *(rows(f"s/{i}", 50, group="s", seed=i, weight=1.0) for i in range(2))])[0] == 50


def test_copies_of_one_row_are_drawn_in_the_order_they_stand() -> None:
    same = SourceRows("a", "a", np.full(5, 7, dtype=np.uint64), np.zeros(5, dtype=np.bool_), None, 2)
    assert draw_rows([same])[0].tolist() == [True, True, False, False, False]


def test_a_source_of_rejected_rows_only_is_drawn_whole_so_that_they_are_told_of() -> None:
    assert draw_rows([rows("a", 0, 9, max_examples=3)])[0].all()


def test_a_weight_that_gives_no_row_is_refused_by_name_with_one_that_would() -> None:
    sources = [rows("tiny.jsonl", 50, weight=0.001), rows("big.jsonl", 100, weight=1.0)]
    with pytest.raises(
        DataError, match=r"data\.sources: tiny\.jsonl gets no row at weight 0\.001: big\.jsonl has 100 rows .*at least 0\.01,"
    ):
        draw_rows(sources)
    assert counts([rows("tiny.jsonl", 50, weight=0.01), sources[1]]) == [1, 100]


def test_a_weighted_source_without_usable_rows_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"data\.sources: a has a weight, but no row that can be drawn \(0 good rows\)"):
        draw_rows([rows("a", 0, 3, weight=1.0), rows("b", 10, weight=1.0)])


def test_the_table_says_of_each_source_what_was_drawn() -> None:
    sources = [rows("a.jsonl", 2000, 100, max_examples=1000), rows("b.json", 30, weight=2.5)]
    lines = [line.split() for line in draw_table(sources, draw_rows(sources)).splitlines()]
    assert lines[1] == ["a.jsonl", "1,000", "2,000", "1,000", "100", "50"]
    assert lines[2] == ["b.json", "2.5", "30", "30", "0", "0"]


def test_no_sources_give_nothing() -> None:
    assert draw_rows([]) == []
