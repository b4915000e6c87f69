"""Laws of the comparison: every method once, paired on the same items, and a candidate that no test set has chosen."""

import copy
import json
from typing import Any

import pytest

from components.errors import ArtifactError
from components.evaluation.comparison import choose_candidate, compare_models
from components.evaluation.headline import METRICS, model_metrics, set_names
from components.evaluation.paired_items import item_scores
from components.params import ComparisonParams
from tests.components.evaluation.conftest import evaluation

PARAMS = ComparisonParams(num_resamples=300)


def grid() -> list[dict[str, Any]]:
    """The base, a method that learns and forgets, and one that learns as much and keeps more."""
    base = evaluation("base", None, in_domain=0.1, copy=0.9, sort=0.8)
    sft = [evaluation("sft", seed, nll=1.0 + seed / 10, in_domain=0.9, copy=0.2 + seed / 50, sort=0.3) for seed in range(3)]
    ours = [evaluation("ours", seed, nll=1.2 - seed / 10, in_domain=0.9, copy=0.8, sort=0.7) for seed in range(3)]
    return [base, *sft, *ours]


def difference(compared: dict[str, Any], metric: str, method: str, reference: str) -> dict[str, Any]:
    [found] = [
        one for one in compared["differences"] if (one["metric"], one["method"], one["reference"]) == (metric, method, reference)
    ]
    return dict(found)


def test_every_pair_is_compared_once_with_its_verdict() -> None:
    compared = compare_models(grid(), PARAMS, "ours")
    pairs = {(one["metric"], one["method"], one["reference"]) for one in compared["differences"]}
    assert len(pairs) == len(compared["differences"]) == 4 * 3, "accuracy and nll, in-domain and OOD; no answers, no base texts"
    assert difference(compared, "in_domain_accuracy", "sft", "base")["verdict"] == "better"
    assert difference(compared, "ood_accuracy", "sft", "base")["verdict"] == "worse"
    assert difference(compared, "in_domain_accuracy", "ours", "sft")["verdict"] == "tie"
    kept = difference(compared, "ood_accuracy", "ours", "sft")
    assert kept["verdict"] == "better"
    assert kept["value"] == pytest.approx((0.8 + 0.7 - 0.22 - 0.3) / 2, abs=1e-6)
    assert kept["low"] < kept["value"] < kept["high"]


def test_methods_are_means_and_intervals_over_seeds() -> None:
    methods = compare_models(grid(), PARAMS, "ours")["methods"]
    assert list(methods) == ["base", "sft", "ours"]
    assert methods["sft"]["models"] == ["sft-0", "sft-1", "sft-2"] and methods["sft"]["num_seeds"] == 3
    figure = methods["sft"]["metrics"]["in_domain_nll"]
    assert figure["mean"] == pytest.approx(1.1)
    assert figure["values"] == pytest.approx((1.0, 1.1, 1.2))
    assert figure["low"] < 1.1 < figure["high"]
    alone = methods["base"]["metrics"]["ood_accuracy"]
    assert (alone["mean"], alone["low"], alone["high"]) == (pytest.approx(0.85), None, None)
    assert methods["base"]["metrics"]["nll_tracks_epistemic"] is None


def test_the_comparison_is_valid_json_and_the_same_each_time() -> None:
    first = json.dumps(compare_models(grid(), PARAMS, "ours"), allow_nan=False)
    assert first == json.dumps(compare_models(grid(), PARAMS, "ours"), allow_nan=False)


def test_the_mean_over_sets_counts_each_set_the_same() -> None:
    metrics = model_metrics(evaluation("x", copy=1.0, sort=0.25))
    assert metrics["ood_accuracy"] == pytest.approx(0.625)
    assert set(metrics) == set(METRICS)


def test_risk_coverage_is_the_mean_over_seeds_and_the_table_says_what_it_was_told_from() -> None:
    evaluations = grid()
    compared = compare_models(evaluations, PARAMS, "ours")
    assert compared["risk_coverage"]["sft"] == [
        {"coverage": 0.5, "risk": pytest.approx(0.55)},
        {"coverage": 1.0, "risk": pytest.approx(1.1)},
    ]
    assert compared["uncertainty_against"] is None
    table = {"against": "reference", "rank_correlation": {"student_nll": {"epistemic": 0.5, "aleatoric": 0.1}}}
    for one in evaluations:
        one["sets"]["in_domain"]["uncertainty"] = table
    told = compare_models(evaluations, PARAMS, "ours")
    assert told["uncertainty_against"] == "reference"
    assert told["methods"]["sft"]["metrics"]["nll_tracks_epistemic"]["mean"] == pytest.approx(0.5)


def test_a_set_without_a_scored_item_is_left_out_of_the_mean() -> None:
    one = evaluation("x", copy=0.8)
    one["sets"]["ood/sort"]["metrics"]["accuracy"]["value"] = None
    for scored in one["sets"]["ood/sort"]["items"]:
        scored["num_scored"] = 0
    assert model_metrics(one)["ood_accuracy"] == pytest.approx(0.8)
    assert list(item_scores([one], set_names(one, "ood_accuracy"))) == ["ood/copy"]


def test_the_validation_split_alone_chooses_the_candidate() -> None:
    runs = grid()[4:]
    for run, (validation, test) in zip(runs, ((0.9, 0.1), (0.5, 0.9), (0.7, 0.05)), strict=True):
        run["sets"]["validation"]["metrics"]["nll"]["value"] = validation
        run["sets"]["in_domain"]["metrics"]["nll"]["value"] = test
    chosen = choose_candidate(runs)
    assert chosen == {
        "model": "ours-1",
        "preset": "ours",
        "seed": 1,
        "validation_nll": 0.5,
        "model_fingerprint": "fingerprint of ours-1",
    }


def test_the_base_is_missed() -> None:
    with pytest.raises(ArtifactError, match="dvc repro evaluate_base"):
        compare_models(grid()[1:], PARAMS, "ours")


@pytest.mark.parametrize("index", [0, 2, 6])
@pytest.mark.parametrize("kind", ["renamed item", "missing item", "other tokens", "other scored", "missing set", "more sets"])
def test_models_that_were_evaluated_on_other_items_are_refused(kind: str, index: int) -> None:
    evaluations = copy.deepcopy(grid())
    sets = evaluations[index]["sets"]
    if kind == "renamed item":
        sets["ood/copy"]["items"][3]["item_id"] = "other"
    elif kind == "missing item":
        sets["in_domain"]["items"].pop()
    elif kind == "other tokens":
        for each in sets["ood/copy"]["items"]:
            each["num_tokens"] = 5
    elif kind == "other scored":
        sets["ood/sort"]["items"][0]["num_scored"] = 2
    elif kind == "missing set":
        del sets["ood/copy"]
    else:
        sets["ood/new"] = sets["ood/copy"]
    with pytest.raises(ArtifactError, match="dvc repro -f evaluate_ood evaluate_base"):
        compare_models(evaluations, PARAMS, "ours")
