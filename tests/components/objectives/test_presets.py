"""Laws of the presets: each is the literal knobs of its source, and a knob without effect is refused, not ignored."""

from typing import Any

import pytest

from components.errors import ParamsError
from components.objectives.presets import PRESETS, Objective, resolve
from components.params import ObjectiveParams


def given(preset: str, **knobs: Any) -> Objective:
    return resolve("cell", ObjectiveParams(preset=preset, **knobs))  # type: ignore[arg-type]


def test_every_preset_of_the_schema_exists_and_every_existing_one_is_in_the_schema() -> None:
    assert set(ObjectiveParams.model_json_schema()["properties"]["preset"]["enum"]) == set(PRESETS)


def test_the_grid_crosses_masking_with_distillation() -> None:
    masks = {name: PRESETS[name].select == "high" for name in ("sft", "masked_mle", "sft_kl", "uncertainty_aware")}
    pulls = {name: PRESETS[name].distils for name in masks}
    assert list(masks.values()) == [False, True, False, True] and list(pulls.values()) == [False, False, True, True]


def test_knobs_in_params_win_over_the_preset_and_the_others_stay() -> None:
    objective = given("uncertainty_aware", keep=0.25, distil_weight=0.3)
    assert (objective.keep, objective.distil_weight) == (0.25, 0.3)
    assert (objective.select, objective.score, objective.distil_on) == ("high", "student_nll", "rest")


@pytest.mark.parametrize(
    ("preset", "knobs", "named"),
    [
        ("sft", {"keep": 0.5}, "keep"),
        ("sft", {"select": "high"}, "select"),
        ("sft", {"warmup_steps": 3}, "warmup_steps"),
        ("sft_kl", {"score": "entropy"}, "score"),
        ("sft_kl", {"threshold_nats": 1.0}, "threshold_nats"),
        ("sft", {"distil_weight": 0.5}, "distil_weight"),
        ("masked_mle", {"temperature": 2.0}, "temperature"),
        ("uncertainty_aware", {"distil_weight": 0.0, "temperature": 2.0}, "temperature"),
        ("random_mask", {"score": "entropy"}, "score"),
        ("random_mask", {"scope": "micro_batch"}, "scope"),
        ("uncertainty_aware", {"threshold_nats": 1.0, "scope": "micro_batch"}, "scope"),
        ("uncertainty_aware", {"threshold_nats": 1.0, "keep": 0.5}, "keep and threshold_nats"),
        ("sft_kl", {"distil_on": "rest"}, "distil_on"),
    ],
)
def test_a_knob_without_effect_is_refused_by_name(preset: str, knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ParamsError, match=rf"objective\.cell.*{named}"):
        given(preset, **knobs)


def test_only_a_moving_quantile_needs_a_threshold() -> None:
    assert given("uncertainty_aware").needs_threshold
    assert not given("uncertainty_aware", threshold_nats=1.0).needs_threshold
    assert not given("uncertainty_aware", keep=1.0).needs_threshold
    assert not given("random_mask").needs_threshold and not given("sft").needs_threshold


def test_teacher_is_needed_for_distillation_and_for_scores_of_its_own() -> None:
    needs = {name: objective.needs_teacher for name, objective in PRESETS.items()}
    assert needs == {"sft": False, "sft_kl": True, "masked_mle": False, "uncertainty_aware": True, "random_mask": False}
    assert given("masked_mle", score="teacher_nll").needs_teacher and not given("masked_mle", score="entropy").needs_teacher
