"""Laws of the lagged threshold: one number a step, from earlier steps, whatever their parts and across a resume."""

import json
from dataclasses import replace

import pytest
import torch

from components.objectives.presets import PRESETS, Objective
from components.training.threshold import NEWEST_WEIGHT, LaggedThreshold
from components.uncertainty.selection import quantile_threshold, select_tokens

LAGGED = PRESETS["uncertainty_aware"]
GENERATOR = torch.Generator().manual_seed(0)
STEPS = [torch.rand(40, generator=GENERATOR) for _ in range(5)]


def advanced(threshold: LaggedThreshold, parts: list[torch.Tensor]) -> float | None:
    for part in parts:
        threshold.observe(part)
    threshold.advance(threshold.take_pending())
    return threshold.value


def test_it_starts_at_the_quantile_of_the_base_models_scores() -> None:
    for select in ("high", "low"):
        objective = replace(LAGGED, select=select, keep=0.3)  # type: ignore[arg-type]
        threshold = LaggedThreshold(objective, STEPS[0])
        assert threshold.value == quantile_threshold(STEPS[0], 0.3, select)
        assert float(select_tokens(STEPS[0], threshold.value, select).float().mean()) == pytest.approx(0.3)


def test_it_moves_half_way_to_each_steps_quantile_and_only_between_steps() -> None:
    threshold = LaggedThreshold(LAGGED, STEPS[0])
    expected = quantile_threshold(STEPS[0], 0.5, "high")
    for scores_N in STEPS[1:]:
        assert threshold.current(scores_N) == expected
        expected = NEWEST_WEIGHT * quantile_threshold(scores_N, 0.5, "high") + (1 - NEWEST_WEIGHT) * expected
        assert advanced(threshold, [scores_N]) == pytest.approx(expected)


def test_the_parts_of_a_step_and_their_order_do_not_matter() -> None:
    whole, parts, turned = (LaggedThreshold(LAGGED, STEPS[0]) for _ in range(3))
    for scores_N in STEPS[1:]:
        pieces = [scores_N[:3], scores_N[3:3], scores_N[3:]]
        assert advanced(whole, [scores_N]) == advanced(parts, pieces) == advanced(turned, pieces[::-1])


def test_a_step_without_targets_leaves_it_where_it_is() -> None:
    threshold = LaggedThreshold(LAGGED, STEPS[0])
    before = threshold.value
    assert advanced(threshold, []) == before and advanced(threshold, [torch.empty(0)]) == before


def test_a_resumed_threshold_goes_on_bit_for_bit() -> None:
    through, before = LaggedThreshold(LAGGED, STEPS[0]), LaggedThreshold(LAGGED, STEPS[0])
    for scores_N in STEPS[1:3]:
        advanced(through, [scores_N])
        advanced(before, [scores_N])
    after = LaggedThreshold(LAGGED, STEPS[0])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for scores_N in STEPS[3:]:
        assert advanced(through, [scores_N]) == advanced(after, [scores_N])


@pytest.mark.parametrize(
    "objective",
    [PRESETS["sft"], PRESETS["random_mask"], replace(LAGGED, keep=1.0), replace(LAGGED, scope="micro_batch", keep=1.0)],
)
def test_an_objective_without_a_threshold_has_none_and_collects_nothing(objective: Objective) -> None:
    threshold = LaggedThreshold(objective, None)
    assert threshold.current(STEPS[0]) is None
    threshold.observe(STEPS[0])
    assert len(threshold.take_pending()) == 0 and not threshold.is_lagged


def test_an_absolute_threshold_never_moves() -> None:
    threshold = LaggedThreshold(replace(LAGGED, threshold_nats=0.25), None)
    assert advanced(threshold, [STEPS[1]]) == threshold.current(STEPS[2]) == 0.25


def test_before_the_first_step_a_score_that_is_zero_for_all_selects_all() -> None:
    threshold = LaggedThreshold(replace(LAGGED, score="excess"), None)
    assert threshold.current(STEPS[0]) is None
    assert advanced(threshold, [STEPS[0]]) == quantile_threshold(STEPS[0], 0.5, "high")


def test_a_micro_batchs_own_threshold_follows_the_micro_batch_and_an_empty_one_keeps_it() -> None:
    threshold = LaggedThreshold(replace(LAGGED, scope="micro_batch"), STEPS[0])
    for scores_N in STEPS[1:]:
        assert threshold.current(scores_N) == quantile_threshold(scores_N, 0.5, "high") == threshold.value
    assert threshold.current(torch.empty(0)) == threshold.value
    threshold.observe(STEPS[0])
    assert len(threshold.take_pending()) == 0
