"""Laws of the warnings: the step from which it stays so, and no alarm for what is meant to be."""

from dataclasses import replace
from typing import Any

import pytest

from components.objectives.presets import PRESETS
from components.training.probe_warnings import follows_noise_since, warnings_of

OURS, MASKED = PRESETS["uncertainty_aware"], PRESETS["masked_mle"]


def looks(*rhos: tuple[float | None, float | None], score: str = "student_nll") -> list[dict[str, Any]]:
    return [
        {"step": 50 * index, "scores": {score: {"epistemic": epistemic, "aleatoric": aleatoric}}, "classes": {}}
        for index, (epistemic, aleatoric) in enumerate(rhos)
    ]


def with_class(name: str, **entry: float) -> list[dict[str, Any]]:
    weights = {"mean_mle_weight": 1.0, "mean_distil_weight": 0.0, **entry}
    whole = {"num_tokens": 40, "selected_fraction": weights["mean_mle_weight"], "mean_student_nll": 0.1, **weights}
    return [{"step": 100, "scores": {}, "classes": {name: whole}}]


@pytest.mark.parametrize(
    ("rhos", "since"),
    [
        ([(0.5, 0.1), (0.3, 0.2)], None),
        ([(0.5, 0.1), (0.2, 0.3), (0.0, 0.6)], 1),
        ([(0.1, 0.5), (0.5, 0.1), (0.1, 0.5), (0.0, 0.6)], 2),
        ([(0.1, 0.5), (0.0, 0.6), (0.5, 0.1)], None),
        ([(0.3, 0.3)], None),
        ([(0.1, 0.5), (None, 0.6), (0.0, 0.6)], 2),
        ([(None, None)], None),
        ([], None),
    ],
)
def test_the_mask_follows_noise_from_where_it_stays_so(rhos: list[Any], since: int | None) -> None:
    assert follows_noise_since(OURS, looks(*rhos)) == since
    warnings = warnings_of(OURS, "ours", looks(*rhos))
    assert [warning["step"] for warning in warnings] == ([] if since is None else [50 * since])


def test_what_follows_noise_is_the_masks_own_score() -> None:
    noisy = looks((-0.04, 0.59))
    assert follows_noise_since(replace(OURS, score="entropy"), noisy) is None
    assert follows_noise_since(PRESETS["sft"], noisy) is None, "it has no mask"
    assert follows_noise_since(PRESETS["random_mask"], noisy) is None
    assert follows_noise_since(replace(OURS, select="low"), noisy) is None, "it avoids high scores, noise included"


def test_the_warning_says_what_where_and_what_to_change() -> None:
    [warning] = warnings_of(OURS, "ours", looks((0.51, 0.1), (-0.04, 0.59)))
    assert warning["kind"] == "follows_noise" and warning["step"] == 50
    for part in (
        "objective.ours",
        "step 50",
        "student_nll",
        "+0.59",
        "-0.04",
        "training.num_steps",
        "objective.ours.score: excess",
    ):
        assert part in warning["message"]
    [other] = warnings_of(PRESETS["excess_aware"], "e", looks((0.1, 0.2), score="excess"))
    assert "token_scores.num_members" in other["message"] and "score: excess" not in other["message"]


@pytest.mark.parametrize(
    ("entry", "warns"),
    [
        ({"mean_mle_weight": 0.5}, False),
        ({"mean_mle_weight": 0.05}, False),
        ({"mean_mle_weight": 0.04}, True),  # nothing distils it
        ({"mean_mle_weight": 0.0, "mean_distil_weight": 1.0}, False),  # known, and held by the base
        (
            {"mean_mle_weight": 0.0, "mean_distil_weight": 1.0, "mean_student_nll": 2.0},
            True,
        ),  # pulled to a base that does not know
        ({"mean_mle_weight": 0.0, "mean_distil_weight": 0.01}, True),
        ({"mean_mle_weight": 0.0, "num_tokens": 7}, False),  # too few to tell
    ],
)
def test_a_class_collapses_where_neither_term_trains_it_as_it_should(entry: dict[str, float], warns: bool) -> None:
    found = warnings_of(OURS, "ours", with_class("end_of_turn", **entry))
    assert [warning["kind"] for warning in found] == (["weight_collapse"] if warns else [])
    if warns:
        distilled = entry.get("mean_distil_weight", 0) > 0.05
        assert ("only distilled" in found[0]["message"]) == distilled and ("not distilled" in found[0]["message"]) != distilled
        assert "objective.ours.protect: [end_of_turn]" in found[0]["message"] and found[0]["class"] == "end_of_turn"


def test_only_classes_that_must_not_be_lost_are_watched() -> None:
    gone = {"mean_mle_weight": 0.0}
    assert warnings_of(MASKED, "m", with_class("word", **gone)) == []
    assert warnings_of(MASKED, "m", with_class("digit", **gone)) == []
    assert len(warnings_of(MASKED, "m", with_class("format", **gone))) == 1
    protecting = replace(PRESETS["dft"], protect=("digit",))
    [warning] = warnings_of(
        protecting, "m", with_class("digit", selected_fraction=1.0, mean_mle_weight=0.01, mean_student_nll=5.0)
    )
    assert "token_weight: probability" in warning["message"], "it is protected already: only its weight can be at fault"


@pytest.mark.parametrize("preset", ["dft", "eaft"])
def test_what_is_known_may_be_weighed_down_what_is_not_known_may_not(preset: str) -> None:
    faint = {"selected_fraction": 1.0, "mean_mle_weight": 0.01}
    assert warnings_of(PRESETS[preset], "m", with_class("format", **faint, mean_student_nll=0.02)) == []
    [warning] = warnings_of(PRESETS[preset], "m", with_class("format", **faint, mean_student_nll=4.0))
    assert "token_weight" in warning["message"] and "protect" not in warning["message"]


def test_the_first_look_at_which_it_has_collapsed_is_named() -> None:
    steps = [*with_class("format"), *with_class("format", mean_mle_weight=0.0), *with_class("format", mean_mle_weight=0.0)]
    for index, step in enumerate(steps):
        step["step"] = 10 * index
    [warning] = warnings_of(MASKED, "m", steps)
    assert warning["step"] == 10
