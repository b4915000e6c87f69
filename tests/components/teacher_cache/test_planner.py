"""Laws of the arithmetic of a plan: exact where all is known, honest about the rest, and break-even where it says."""

import math

import numpy as np
import pytest

from components.teacher_cache.planner import (
    COLUMN_BYTES,
    INDEX_BYTES,
    BatchShape,
    CacheSize,
    Estimate,
    GridRuns,
    Seconds,
    TimedBatch,
    break_even,
    capture_seconds,
    estimate_total,
    grid_seconds,
    runs_of_grid,
    spread_places,
    spread_shapes,
)


def timed(num_rows: int, width: int, forward: float, encoding: float = 0.0, spread: float = 0.0) -> TimedBatch:
    return TimedBatch(BatchShape(num_rows, width, num_rows * (width - 1)), Seconds(forward, spread, 3), Seconds(encoding, 0.0, 3))


def test_a_sample_is_spread_evenly_over_the_lengths() -> None:
    lengths = np.random.default_rng(0).permutation(1000)
    chosen = sorted(lengths[spread_places(lengths, 10)].tolist())
    assert chosen == [50 + 100 * step for step in range(10)]


@pytest.mark.parametrize("num_rows", [1, 7, 8])
def test_of_few_rows_all_are_taken(num_rows: int) -> None:
    assert spread_places(range(num_rows, 0, -1), 8) == list(range(num_rows))


def test_a_total_is_exact_when_every_record_was_looked_at_or_goes_with_its_size() -> None:
    assert estimate_total([3, 5, 9], [1, 2, 3], 6, 3) == Estimate(17.0, 0.0)
    assert estimate_total([2, 4, 6], [1, 2, 3], 600, 100) == Estimate(1200.0, 0.0)


def test_the_interval_of_a_total_holds_the_truth_in_about_nineteen_of_twenty_samples() -> None:
    draw = np.random.default_rng(0)
    sizes_R = draw.lognormal(4, 0.8, 3000).round() + 1
    values_R = sizes_R * draw.choice([3.0, 40.0], 3000) * draw.lognormal(0, 0.3, 3000)
    held = 0
    for _ in range(400):
        chosen_S = draw.choice(3000, 128, replace=False)
        found = estimate_total(values_R[chosen_S], sizes_R[chosen_S], float(sizes_R.sum()), 3000)
        held += abs(found.value - values_R.sum()) <= found.relative_error * found.value
    assert 0.90 < held / 400 < 0.99


def test_one_probed_record_of_many_tells_no_interval() -> None:
    assert estimate_total([5], [2], 20, 10) == Estimate(50.0, math.inf)


def test_a_cache_s_size_is_the_sum_of_its_parts_and_only_its_entries_are_uncertain() -> None:
    size = CacheSize(10, 100, 2, Estimate(4000.0, 0.1), 700)
    assert size.total_bytes == 4000 + 100 * COLUMN_BYTES + 10 * INDEX_BYTES + 700
    assert size.bytes_per_token == size.total_bytes / 100
    assert size.relative_error == pytest.approx(400 / size.total_bytes)
    assert (COLUMN_BYTES, INDEX_BYTES) == (17, 52)


def test_seconds_are_the_fastest_round_and_say_how_much_slower_the_slowest_was() -> None:
    assert Seconds.of([2.0, 3.0, 2.5]) == Seconds(2.0, 0.5, 3)


def test_batches_of_the_timed_widths_take_what_was_measured_and_between_them_the_rate_is_interpolated() -> None:
    batches = [timed(10, 10, 1.0, 0.2), timed(2, 50, 3.0, 0.1)]
    shapes = [BatchShape(10, 10, 90), BatchShape(5, 10, 45), BatchShape(3, 30, 87), BatchShape(2, 50, 98)]
    found = capture_seconds(shapes, batches, load=7.0, overlaps=True)
    assert found.forward == pytest.approx(1.0 + 0.5 + 90 * 0.02 + 3.0)
    assert found.encoding == pytest.approx(0.3 / 188 * 320)
    assert found.total == pytest.approx(7.0 + found.forward)
    assert capture_seconds(shapes, batches, 7.0, overlaps=False).total == pytest.approx(7.0 + found.forward + found.encoding)


def test_the_spread_of_a_capture_is_that_of_all_timed_batches_together() -> None:
    found = capture_seconds([BatchShape(1, 4, 3)], [timed(1, 4, 1.0, spread=1.0), timed(1, 9, 3.0)], 0.0, overlaps=True)
    assert found.spread == pytest.approx(0.25)


def test_the_narrowest_and_the_widest_batch_are_timed() -> None:
    shapes = [BatchShape(4, width, 4 * width) for width in (30, 10, 50, 20, 40)]
    assert [shapes[place].width for place in spread_shapes(shapes, 3)] == [10, 30, 50]
    assert len(spread_shapes(shapes, 9)) == 5


def test_a_cache_pays_as_soon_as_what_it_saves_has_made_up_for_its_capture() -> None:
    assert break_even(100.0, online=6.0, cached=1.0) == 20.0
    assert break_even(100.0, online=1.0, cached=1.0) is None


def test_epochs_take_the_place_of_steps_where_they_are_given() -> None:
    sizes = {"num_rows": 100, "num_steps": 50, "batch_size": 8, "micro_batch_size": 4}
    assert runs_of_grid(6, 0, 3, 0, **sizes, num_epochs=None) == GridRuns(6, 0, 3, 0, 50, 2, 4.0)
    assert runs_of_grid(6, 0, 3, 0, **sizes, num_epochs=2.0) == GridRuns(6, 0, 3, 0, 25, 2, 2.0)


def test_the_grid_takes_the_steps_of_all_its_cells() -> None:
    runs = GridRuns(
        num_distilling=6, num_scoring=1, num_plain=3, num_online=2, num_steps=10, micro_batches_per_step=2, num_epochs=1
    )
    assert grid_seconds(runs, plain=1.0, distilling=2.0, online=5.0) == 20 * (4 + 12 + 10)
