"""Laws of the curriculum section: where noise takes over is said, means are over seeds, what was not recorded is left out."""

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from components.evaluation.probes import step_lines
from components.evaluation.report import render_html
from components.evaluation.report_curriculum import crossing_step, curriculum, sentence
from tests.components.evaluation.fake_probe import fake_probe
from tests.components.evaluation.test_report import CONTEXT, compare, text_of

LEFT = [(0.0, 0.6), (50.0, 0.5), (100.0, 0.1), (150.0, 0.0)]


HIGH = {"score": "student_nll", "select": "high", "truth": "law"}


def noise(*values: float) -> list[tuple[float, float]]:
    return [(50.0 * place, value) for place, value in enumerate(values)]


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    return compare()


@pytest.fixture(scope="module")
def probes(comparison: dict[str, Any]) -> dict[str, Any]:
    models = [(name, model) for name, method in comparison["methods"].items() if name != "base" for model in method["models"]]
    made = {model: fake_probe(name, int(model.rpartition("-")[2]), num_rows=16) for name, model in models}
    return dict(json.loads(json.dumps(made)))


def test_the_crossing_is_the_first_step_from_which_noise_stays_ahead() -> None:
    assert crossing_step(LEFT, noise(0.1, 0.2, 0.3, 0.4)) == 100
    assert crossing_step(LEFT, noise(0.9, 0.2, 0.3, 0.4)) == 100, "what does not last does not count"
    assert crossing_step(LEFT, noise(0.9, 0.9, 0.9, 0.9)) == 0
    assert crossing_step(LEFT, noise(0.1, 0.9, 0.0, -0.1)) is None
    assert crossing_step(LEFT, []) is None


def test_the_crossing_is_put_into_words() -> None:
    said = sentence(LEFT, noise(0.1, 0.2, 0.3, 0.4), HIGH)
    assert said.startswith("from step 100 the mask follows noise more than what is left to learn")
    assert "at step 150: +0.40 with noise, +0.00 with what is left" in said
    assert sentence(LEFT, noise(0.9, 0.9, 0.9, 0.9), HIGH).startswith("at every probe the mask follows noise")
    assert sentence(LEFT, noise(0.1, 0.9, 0.0, -0.1), HIGH).startswith("at 1 of 4 probes, but not at the last,")
    assert sentence(LEFT, noise(0, 0, 0, -1), HIGH).startswith(
        "at every probe the mask follows what is left to learn more than noise"
    )
    assert "not known" in sentence([], [], HIGH)
    assert "avoids noise" in sentence(LEFT, noise(1, 1, 1, 1), {"score": "s", "select": "low"}), (
        "a mask that keeps the low end turns its back on it"
    )


def test_the_report_shows_every_mask_its_warnings_and_its_coverage(comparison: dict[str, Any], probes: dict[str, Any]) -> None:
    page = render_html(comparison, {}, CONTEXT, probes)
    read = text_of(page)
    assert "follows noise (3 of 3 seeds): from step 150 on the mask ranks tokens more like noise" in read
    assert "objective.masked_mle: from" not in read, "the method is named already"
    assert "No mask, every token is learned: sft, sft_kl." in read
    for name in ("masked_mle", "uncertainty_aware"):
        assert f"Rank correlation of the mask&#x27;s score of {name}" in page and f"Turnover of the mask of {name}" in page
        rows = next(
            element
            for element in ElementTree.fromstring(page).iter("div")
            if element.get("aria-label") == f"Coverage of {name} by token class"
        )
        assert [row.findtext("th") for row in rows.findall("table/tbody/tr")] == [
            "end of turn",
            "first",
            "format",
            "digit",
            "word",
        ]
    assert 'href="tokens.html"' in page


def test_a_figure_is_the_mean_over_seeds(comparison: dict[str, Any], probes: dict[str, Any]) -> None:
    story = next(mask for mask in curriculum(comparison, probes)["masks"] if mask["name"] == "masked_mle")
    shares = [probes[f"masked_mle-{seed}"]["steps"][0]["classes"]["word"]["selected_fraction"] for seed in range(3)]
    assert next(row for row in story["coverage"] if row["name"] == "word")["shares"][0] == round(100 * sum(shares) / 3)
    assert story["shown_steps"] == [0, 150, 300]


def test_whole_numbers_that_entered_or_left_are_counts_and_become_shares() -> None:
    probe = {"num_tokens": 200, "steps": [{"step": 1, "entered": 50, "left": 0.125, "jaccard": None}]}
    assert step_lines(probe) == [{"step": 1.0, "entered": 0.25, "left": 0.125}]


def test_two_warnings_of_a_kind_are_one_line_at_the_earliest_step(comparison: dict[str, Any]) -> None:
    warnings = [{"step": step, "kind": "follows_noise", "message": f"at {step}"} for step in (100, 50)]
    lines = curriculum(comparison, {f"sft-{seed}": {"warnings": warnings} for seed in range(2)})["warnings"]
    assert [(line["method"], line["step"], line["message"], line["num_seeds"]) for line in lines] == [("sft", 50, "at 50", 2)]


def test_warnings_of_several_classes_are_a_line_each(comparison: dict[str, Any]) -> None:
    warnings = [{"step": 50, "kind": "weight_collapse", "class": name, "message": name} for name in ("end_of_turn", "format")]
    lines = curriculum(comparison, {"sft-0": {"warnings": warnings}})["warnings"]
    assert [line["message"] for line in lines] == ["end_of_turn", "format"]
    read = text_of(render_html(comparison, {}, CONTEXT, {"sft-0": {"warnings": warnings}}))
    assert "weight collapse , step 50: end_of_turn" in read, "the step is said where the message does not say it"


def test_a_mask_by_chance_follows_nothing_but_comes_and_goes(comparison: dict[str, Any], probes: dict[str, Any]) -> None:
    by_chance = {**probes["masked_mle-0"], "select": "random"}
    story = curriculum(comparison, {"masked_mle-0": by_chance})["masks"][0]
    assert story["score"] is None and story["follows_svg"] is None and story["crossing"] is None
    assert "by chance" in story["sentence"] and story["turnover_svg"]
    assert "score: student_nll" not in text_of(render_html(comparison, {}, CONTEXT, {"masked_mle-0": by_chance}))


def test_what_is_in_the_mask_is_told_where_the_truth_is_known(comparison: dict[str, Any], probes: dict[str, Any]) -> None:
    story = curriculum(comparison, probes)["masks"][0]
    assert story["holdings"] == [
        {"name": "still to learn", "shares": [50] * 3},
        {"name": "known already", "shares": [12] * 3},
        {"name": "noise", "shares": [38] * 3},
    ]
    unknown = {**probes["masked_mle-0"], "steps": [{**step, "mask": None} for step in probes["masked_mle-0"]["steps"]]}
    assert curriculum(comparison, {"masked_mle-0": unknown})["masks"][0]["holdings"] == []


@pytest.mark.parametrize(
    "probe",
    [
        {},
        {"score": "student_nll"},
        {"score": "student_nll", "steps": None, "warnings": None, "classes": None},
        {"score": "excess", "truth": "none", "steps": [{"step": 0, "jaccard": None, "classes": None, "scores": None}]},
        {"score": "excess", "steps": [{"step": 0, "classes": {"word": {"num_tokens": 0, "selected_fraction": None}}}]},
        {"score": "excess", "steps": [{"step": 0, "scores": {"excess": {"epistemic": None, "aleatoric": None}}}]},
    ],
)
def test_what_was_not_recorded_is_left_out(comparison: dict[str, Any], probe: dict[str, Any]) -> None:
    page = render_html(comparison, {}, CONTEXT, {"sft-0": probe})
    assert "What the masks followed" in text_of(page)
    if probe.get("score"):
        assert "drawn by chance" not in page
        assert "not known: it takes the true law" in text_of(page)


def test_without_probes_the_report_says_so(comparison: dict[str, Any]) -> None:
    assert "No probes were given." in text_of(render_html(comparison, {}, CONTEXT))
