"""Laws of the lagged threshold: one number a step, from earlier steps, whatever their parts and across a resume."""

import json
from dataclasses import replace

import pytest
import torch

from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.weights import TokenFacts
from components.training.threshold import NEWEST_WEIGHT, ScoreThreshold
from components.uncertainty.selection import quantile_threshold, select_tokens

LAGGED = PRESETS["uncertainty_aware"]
GENERATOR = torch.Generator().manual_seed(0)
STEPS = [torch.rand(40, generator=GENERATOR) for _ in range(5)]


def advanced(threshold: ScoreThreshold, parts: list[torch.Tensor]) -> float | None:
    for part in parts:
        threshold.observe(part)
    threshold.advance(threshold.take_pending())
    return threshold.value


def test_it_starts_at_the_quantile_of_the_base_models_scores() -> None:
    for select in ("high", "low"):
        objective = replace(LAGGED, select=select, keep=0.3)  # type: ignore[arg-type]
        threshold = ScoreThreshold(objective, STEPS[0])
        assert threshold.value == quantile_threshold(STEPS[0], 0.3, select)
        assert float(select_tokens(STEPS[0], threshold.value, select).float().mean()) == pytest.approx(0.3)


def test_it_moves_half_way_to_each_steps_quantile_and_only_between_steps() -> None:
    threshold = ScoreThreshold(LAGGED, STEPS[0])
    expected = quantile_threshold(STEPS[0], 0.5, "high")
    for scores_N in STEPS[1:]:
        assert threshold.current() == expected
        expected = NEWEST_WEIGHT * quantile_threshold(scores_N, 0.5, "high") + (1 - NEWEST_WEIGHT) * expected
        assert advanced(threshold, [scores_N]) == pytest.approx(expected)


def test_the_parts_of_a_step_and_their_order_do_not_matter() -> None:
    whole, parts, turned = (ScoreThreshold(LAGGED, STEPS[0]) for _ in range(3))
    for scores_N in STEPS[1:]:
        pieces = [scores_N[:3], scores_N[3:3], scores_N[3:]]
        assert advanced(whole, [scores_N]) == advanced(parts, pieces) == advanced(turned, pieces[::-1])


def test_a_step_without_targets_leaves_it_where_it_is() -> None:
    threshold = ScoreThreshold(LAGGED, STEPS[0])
    before = threshold.value
    assert advanced(threshold, []) == before and advanced(threshold, [torch.empty(0)]) == before


def test_a_resumed_threshold_goes_on_bit_for_bit() -> None:
    through, before = ScoreThreshold(LAGGED, STEPS[0]), ScoreThreshold(LAGGED, STEPS[0])
    for scores_N in STEPS[1:3]:
        advanced(through, [scores_N])
        advanced(before, [scores_N])
    after = ScoreThreshold(LAGGED, STEPS[0])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for scores_N in STEPS[3:]:
        assert advanced(through, [scores_N]) == advanced(after, [scores_N])


@pytest.mark.parametrize(
    "objective",
    [PRESETS["sft"], PRESETS["random_mask"], replace(LAGGED, keep=1.0), replace(LAGGED, scope="micro_batch", keep=1.0)],
)
def test_an_objective_without_a_threshold_has_none_and_collects_nothing(objective: Objective) -> None:
    threshold = ScoreThreshold(objective, None)
    assert threshold.current() is None
    threshold.observe(STEPS[0])
    assert len(threshold.take_pending()) == 0 and not threshold.is_lagged


def test_an_absolute_threshold_never_moves() -> None:
    threshold = ScoreThreshold(replace(LAGGED, threshold_nats=0.25), None)
    assert advanced(threshold, [STEPS[1]]) == threshold.current() == 0.25


def test_before_the_first_step_a_score_that_is_zero_for_all_selects_all() -> None:
    threshold = ScoreThreshold(replace(LAGGED, score="excess"), None)
    assert threshold.current() is None
    assert advanced(threshold, [STEPS[0]]) == quantile_threshold(STEPS[0], 0.5, "high")


def facts_of(num_tokens: int, num_rows: int = 1) -> TokenFacts:
    return TokenFacts(torch.ones(num_tokens, dtype=torch.bool), torch.arange(num_tokens) * num_rows // max(1, num_tokens))


def test_a_micro_batchs_own_threshold_follows_the_micro_batch_and_an_empty_one_keeps_it() -> None:
    threshold = ScoreThreshold(replace(LAGGED, scope="micro_batch"), STEPS[0])
    assert threshold.is_local
    for scores_N in STEPS[1:]:
        assert threshold.local(scores_N, facts_of(40)) == quantile_threshold(scores_N, 0.5, "high") == threshold.value
    assert threshold.local(torch.empty(0), facts_of(0)) == threshold.value
    threshold.observe(STEPS[0])
    assert len(threshold.take_pending()) == 0


def test_prompt_tokens_do_not_move_the_threshold_of_their_micro_batch() -> None:
    threshold = ScoreThreshold(replace(LAGGED, scope="micro_batch"), None)
    facts = replace(facts_of(40), is_target_N=torch.arange(40) < 30)
    assert threshold.local(STEPS[1], facts) == quantile_threshold(STEPS[1][:30], 0.5, "high")


def test_the_scope_sequence_keeps_its_share_of_every_row() -> None:
    threshold = ScoreThreshold(replace(LAGGED, scope="sequence", keep=0.3), None)
    scores_N = torch.cat([STEPS[1][:20], STEPS[1][20:] + 100])
    thresholds_N = threshold.local(scores_N, facts_of(40, num_rows=2))
    assert isinstance(thresholds_N, torch.Tensor)
    for row in (slice(0, 20), slice(20, 40)):
        assert int((scores_N[row] >= thresholds_N[row]).sum()) == 6


def test_a_dataset_threshold_is_the_quantile_of_all_targets_and_never_moves() -> None:
    threshold = ScoreThreshold(PRESETS["uncertainty_aware_static"], STEPS[0])
    assert not threshold.is_lagged and not threshold.is_local
    assert advanced(threshold, [STEPS[1]]) == threshold.current() == quantile_threshold(STEPS[0], 0.5, "high")


def test_where_each_row_has_its_own_there_is_no_number_to_log() -> None:
    threshold = ScoreThreshold(replace(LAGGED, scope="sequence"), STEPS[0])
    assert threshold.value is None
    threshold.local(STEPS[1], facts_of(40, num_rows=2))
    assert threshold.value is None
