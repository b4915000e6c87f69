"""Laws of the schema's combinations: given knobs win, and what has no effect or cannot be computed is refused with the reason."""

from typing import Any

import pytest

from components.errors import ParamsError
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.resolve import resolve, resolve_all, warnings_of
from components.params import ObjectiveParams, Params, load_params


def given(preset: str, **knobs: Any) -> Objective:
    return resolve("cell", ObjectiveParams(preset=preset, **knobs))  # type: ignore[arg-type]


def test_without_knobs_it_is_the_preset() -> None:
    assert {name: given(name) for name in PRESETS} == PRESETS


def test_knobs_in_params_win_over_the_preset_and_the_others_stay() -> None:
    objective = given("uncertainty_aware", keep=0.25, distil_weight=0.3)
    assert (objective.keep, objective.distil_weight) == (0.25, 0.3)
    assert (objective.select, objective.score, objective.distil_on) == ("high", "student_nll", "rest")


def test_a_fraction_to_keep_replaces_the_preset_s_absolute_threshold() -> None:
    objective = given("stm", keep=0.7)
    assert objective.threshold is None and objective.needs_threshold and objective.keep == 0.7


@pytest.mark.parametrize(
    ("preset", "knobs", "named"),
    [
        ("sft", {"keep": 0.5}, "keep"),
        ("sft", {"select": "high"}, "select"),
        ("sft", {"warmup_steps": 3}, "warmup_steps"),
        ("sft", {"protect": ["format"]}, "protect"),
        ("dft", {"threshold_nats": 1.0}, "threshold_nats"),
        ("sft_kl", {"score": "entropy"}, "score"),
        ("sft_kl", {"threshold_nats": 1.0}, "threshold_nats"),
        ("sft", {"distil_weight": 0.5}, "distil_weight"),
        ("sft", {"divergence": "jsd"}, "divergence"),
        ("sft", {"teacher": "online"}, "teacher"),
        ("masked_mle", {"temperature": 2.0}, "temperature"),
        ("uncertainty_aware", {"distil_weight": 0.0}, "distil_weight: 0 distils nothing"),
        ("sft_kl", {"distil_weight": 0.0, "distil_on": "all"}, "distil_weight: 0 distils nothing"),
        ("gain_aware", {"distil_weight": 0.0}, "distil_weight: 0 distils nothing"),
        ("sft", {"normalizer": "selected_tokens"}, "normalizer"),
        ("dft", {"normalizer": "selected_tokens"}, "normalizer"),
        ("uncertainty_aware", {"keep": 1.0, "warmup_steps": 10}, "keep: 1.0 selects every target token"),
        ("random_mask", {"score": "entropy"}, "score"),
        ("random_mask", {"scope": "micro_batch"}, "scope"),
        ("random_mask", {"warmup_steps": 3}, "warmup_steps"),
        ("uncertainty_aware", {"threshold_nats": 1.0, "scope": "micro_batch"}, "scope"),
        ("uncertainty_aware", {"threshold_nats": 1.0, "keep": 0.5}, "keep and threshold_nats"),
        ("uncertainty_aware", {"threshold_nats": 1.0, "threshold_value": 0.5}, "exclude each other"),
        ("sft_kl", {"distil_on": "rest"}, "distil_on"),
    ],
)
def test_a_knob_without_effect_is_refused_by_name(preset: str, knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ParamsError, match=rf"objective\.cell.*{named}"):
        given(preset, **knobs)


@pytest.mark.parametrize(
    ("preset", "knobs", "reason"),
    [
        ("sft_kl", {"divergence": "reverse_kl"}, r"divergence: reverse_kl needs the teacher's full law.*teacher: online"),
        ("uncertainty_aware", {"divergence": "skew"}, r"divergence: skew needs the teacher's full law"),
        ("uncertainty_aware", {"scope": "dataset"}, r"scope: 'dataset' needs a score that does not move"),
        ("uncertainty_aware", {"score": "column"}, r"column: score: column and the column's name go together"),
        ("uncertainty_aware", {"column": "mine"}, r"column: score: column and the column's name go together"),
        ("uncertainty_aware", {"score": "probability_gain", "threshold_nats": 0.1}, r"threshold_nats: .*not in nats"),
        ("uncertainty_aware", {"threshold_value": 0.1}, r"threshold_value: score student_nll is in nats"),
        ("stm", {"threshold_nats": -1.0}, r"threshold_nats: -1 is below every teacher_nll"),
        ("uncertainty_aware", {"threshold_nats": -0.5}, r"threshold_nats: -0.5 is below every student_nll"),
        ("gain_aware", {"threshold_value": 2.0}, r"threshold_value: 2 is outside the gains"),
        ("gain_aware", {"threshold_value": -1.0}, r"threshold_value: -1 is outside the gains"),
        ("masked_mle", {"score": "entropy", "token_weight": "entropy"}, r"token_weight: 'entropy' weighs by another entropy"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_the_reason(preset: str, knobs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParamsError, match=rf"params\.yaml: objective\.cell\.{reason}"):
        given(preset, **knobs)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd", "skew"])
def test_an_online_teacher_allows_every_divergence_and_temperature(divergence: str) -> None:
    objective = given("sft_kl", divergence=divergence, teacher="online", temperature=3.0)
    assert objective.divergence == divergence and not objective.needs_teacher


TARGETS_ONLY: dict[str, Any] = {"teacher_cache": {"positions": "targets"}}


def whole(cell: dict[str, Any], **sections: Any) -> Params:
    raw = load_params().model_dump()
    raw |= {"objective": {"cell": cell}, "presets": ["cell"]}
    raw["registration"]["candidate"] = "cell"
    return Params.model_validate({**raw, **{name: {**raw[name], **value} for name, value in sections.items()}})


@pytest.mark.parametrize(
    ("cell", "sections", "reason"),
    [
        ({"preset": "excess_aware"}, {"token_scores": {"reference": "none"}}, "needs a reference"),
        (
            {"preset": "masked_mle", "score": "probability_gain"},
            {"token_scores": {"reference": "none"}},
            "needs a reference",
        ),
        (
            {"preset": "masked_mle", "score": "mutual_information"},
            {"token_scores": {"reference": "local", "reference_path": "somewhere"}},
            "needs an ensemble",
        ),
        ({"preset": "masked_mle", "score": "column", "column": "mine"}, {}, "needs column 'mine'"),
        ({"preset": "sft_kl", "temperature": 3.0}, {}, "a cache holds one temperature"),
        ({"preset": "masked_mle", "warmup_steps": 300}, {}, "the mask would never start"),
        (
            {"preset": "sft_kl", "prompt_tokens": "distil_only"},
            {"teacher_cache": {"positions": "targets"}},
            "teacher_cache.positions",
        ),
    ],
)
def test_what_another_section_does_not_give_is_refused_before_any_stage(
    cell: dict[str, Any], sections: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ParamsError, match=rf"objective\.cell.*{reason}"):
        resolve_all(whole(cell, **sections))


def test_only_a_moving_quantile_needs_a_threshold() -> None:
    assert given("uncertainty_aware").needs_threshold
    assert not given("uncertainty_aware", threshold_nats=1.0).needs_threshold
    assert not given("random_mask").needs_threshold and not given("sft").needs_threshold


def test_teacher_is_needed_for_distillation_and_for_scores_of_its_own() -> None:
    needs = {name for name, objective in PRESETS.items() if objective.needs_teacher}
    assert needs == {"sft_kl", "uncertainty_aware", "uncertainty_aware_static", "excess_aware", "gain_aware", "stm"}
    assert given("masked_mle", score="teacher_nll").needs_teacher and not given("masked_mle", score="entropy").needs_teacher
    assert not given("sft_kl", teacher="online").needs_teacher


def test_a_static_mask_without_distillation_warns_and_with_distillation_does_not() -> None:
    assert "static mask without distillation" in warnings_of(given("masked_mle", score="teacher_nll", scope="dataset"))[0]
    assert "static mask without distillation" in warnings_of(given("masked_mle", score="teacher_nll"))[0], "whatever its scope"
    assert not warnings_of(given("uncertainty_aware_static")) and not warnings_of(given("sft"))
    assert not warnings_of(given("excess_aware", distil_on="none")), "the student's own loss moves"
    assert "pins unlearned tokens" in warnings_of(given("masked_mle", threshold_nats=1.0))[0]


def test_the_weight_schedule_is_linear_between_its_ends() -> None:
    objective = given("sft_kl", distil_weight=2.0, distil_weight_final=0.5)
    assert [objective.distil_weight_at(step, 4) for step in range(4)] == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert given("sft_kl").distil_weight_at(3, 4) == 1.0
