"""Laws of evaluation: figures are sums divided once, accuracy counts what can be known, a broken model is refused."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from components.errors import ModelError
from components.evaluation.evaluate import evaluate_sets, is_determined
from components.evaluation.items import EvaluationItem, Law
from components.evaluation.likelihood import join, score_rows
from components.evaluation.uncertainty_table import uncertainty_against_truth
from components.params import EvaluationParams
from tests.components.evaluation.conftest import TableModel, item, laws_model, table_model

PARAMS = EvaluationParams(batch_tokens=100, num_ece_bins=4)


def evaluate(items: list[EvaluationItem], model: TableModel, base: TableModel | None = None) -> dict[str, Any]:
    return evaluate_sets(model, base or table_model(7, 1), {"set": items}, PARAMS)["set"]


def accuracy(items: list[EvaluationItem], model: TableModel) -> float:
    return float(evaluate(items, model)["metrics"]["accuracy"]["value"])


@pytest.mark.parametrize("gold", [0, 1, 2])
def test_multiple_choice_picks_the_option_with_the_highest_summed_logprob(gold: int) -> None:
    model = laws_model({1: {2: 0.5, 3: 0.3, 4: 0.2}, 2: {5: 0.01, 6: 0.99}, 3: {5: 1.0}, 4: {5: 1.0}}, 7)
    options = ([1, 2, 5], [1, 3, 5], [1, 4, 5])  # 0.005, 0.3, 0.2
    assert accuracy([item(*options, kind="choice", gold=gold)], model) == float(gold == 1)


def test_a_tie_between_options_is_a_guess() -> None:
    assert accuracy([item([1, 2], [1, 3], [1, 4], kind="choice")], TableModel(torch.zeros(7, 7))) == pytest.approx(1 / 3)
    assert accuracy([item([1, 2], [1, 2], kind="choice", gold=1)], table_model()) == pytest.approx(1 / 2)


def test_an_exact_answer_is_right_when_every_token_is_the_first_choice() -> None:
    model = laws_model({1: {2: 1.0}, 2: {3: 0.6, 4: 0.4}}, 7)
    items = [item([1, 2, 3], kind="exact"), item([1, 2, 4], kind="exact"), item([0, 1, 2], num_context=2, kind="exact")]
    assert [result["num_correct"] for result in evaluate(items, model)["items"]] == [1.0, 0.0, 1.0]
    assert accuracy(items, model) == pytest.approx(2 / 3)


def test_accuracy_counts_what_is_determined_where_the_truth_is_known_and_everything_elsewhere() -> None:
    laws: list[Law] = [{2: 0.6, 3: 0.4}, {5: 1.0}, {6: 1.0}]
    model = laws_model({1: {2: 1.0}, 3: {5: 1.0}, 5: {0: 1.0}}, 7)
    row = [1, 3, 5, 6]  # an unlucky draw, a hit, a miss
    known, unknown = evaluate([item(row, laws=laws)], model), evaluate([item(row)], model)
    assert (known["items"][0]["num_correct"], known["items"][0]["num_scored"]) == (1.0, 2)
    assert (unknown["items"][0]["num_correct"], unknown["items"][0]["num_scored"]) == (1.0, 3)
    assert known["metrics"]["nll"]["num"] == 3, "the nll counts every token"
    [statistics] = score_rows(model, model, [item(row, laws=laws).rows[0]], 100)
    assert is_determined(statistics).tolist() == [False, True, True]


def test_figures_are_sums_divided_once() -> None:
    model, base = table_model(7, 0), table_model(7, 1)
    items = [item([1, 2, 3, 4, 5, 6]), item([3, 1]), item([0, 0, 2, 1], num_context=2)]
    result = evaluate(items, model, base)
    tokens = join(score_rows(model, base, [one.rows[0] for one in items], 100))
    for metric, values in (("nll", tokens.nll), ("drift_kl", tokens.drift_kl), ("accuracy", tokens.is_correct.double())):
        assert result["metrics"][metric]["value"] == pytest.approx(float(values.double().mean())), metric
        assert result["metrics"][metric]["num"] == len(values) == 8
    assert sum(one["nll_sum"] for one in result["items"]) == pytest.approx(float(tokens.nll.sum()))


def test_the_gold_option_alone_makes_the_nll_of_a_choice() -> None:
    model = table_model()
    choice, alone = item([1, 2, 3], [1, 4, 4], kind="choice", gold=1), item([1, 4, 4])
    assert evaluate([choice], model)["metrics"]["nll"]["value"] == pytest.approx(
        evaluate([alone], model)["metrics"]["nll"]["value"]
    )


def test_the_standard_error_is_that_of_a_ratio_over_items() -> None:
    model = table_model()
    items = [item([start, *range(length)]) for start, length in ((1, 2), (2, 5), (3, 3), (4, 6), (0, 1))]
    results = evaluate(items, model)
    sums = [(one["nll_sum"], one["num_tokens"]) for one in results["items"]]
    ratio = sum(a for a, _ in sums) / sum(b for _, b in sums)
    variance = sum((a - ratio * b) ** 2 for a, b in sums) * 5 / 4 / sum(b for _, b in sums) ** 2
    assert results["metrics"]["nll"]["standard_error"] == pytest.approx(math.sqrt(variance))


def test_the_standard_error_is_what_repetition_shows() -> None:
    model, generator = table_model(), torch.Generator().manual_seed(5)
    means, errors = [], []
    for _ in range(150):
        rows = [
            torch.randint(0, 7, (int(torch.randint(2, 8, (1,), generator=generator)),), generator=generator).tolist()
            for _ in range(30)
        ]
        figure = evaluate([item(row) for row in rows], model)["metrics"]["nll"]
        means.append(figure["value"])
        errors.append(figure["standard_error"])
    assert sum(errors) / len(errors) == pytest.approx(float(torch.tensor(means).std()), rel=0.2)


@pytest.mark.parametrize(
    "items", [[item([1, 2])], [item([1, 2], [1, 3], kind="choice")], [item([1, 2, 3], laws=[{2: 0.5, 3: 0.5}, {3: 0.9, 4: 0.1}])]]
)
def test_the_smallest_sets_are_valid_json(items: list[EvaluationItem]) -> None:
    result = evaluate(items, table_model())
    json.dumps(result, allow_nan=False)
    assert result["metrics"]["nll"]["standard_error"] is None
    assert result["metrics"]["drift_kl"]["standard_error"] is None


def test_where_nothing_is_determined_there_is_no_accuracy() -> None:
    metrics = evaluate([item([1, 2], laws=[{2: 0.5, 3: 0.5}])], table_model())["metrics"]
    assert metrics["accuracy"] == {"value": None, "unit": "share", "num": 0, "standard_error": None, "higher_is_better": True}


def test_the_base_evaluated_beside_itself_has_no_drift() -> None:
    base = table_model()
    assert evaluate([item([1, 2, 3]), item([4, 4])], base, base)["metrics"]["drift_kl"]["value"] == 0.0


def test_the_calibration_error_is_that_of_its_curve() -> None:
    items = [item(torch.randint(0, 7, (9,), generator=torch.Generator().manual_seed(seed)).tolist()) for seed in range(40)]
    model = table_model()
    result = evaluate(items, model)
    tokens = join(score_rows(model, model, [one.rows[0] for one in items], 100))
    assert sum(bin_["num_tokens"] for bin_ in result["reliability"]) == len(tokens.nll) == result["metrics"]["ece"]["num"]
    literal = 0.0
    for bin_ in result["reliability"]:
        inside = (tokens.confidence > bin_["lower"]) & (tokens.confidence <= bin_["upper"])
        assert int(inside.sum()) == bin_["num_tokens"]
        if inside.any():
            literal += abs(float(tokens.is_correct[inside].double().mean() - tokens.confidence[inside].double().mean())) * int(
                inside.sum()
            )
    assert result["metrics"]["ece"]["value"] == pytest.approx(literal / len(tokens.nll))


def test_a_model_that_says_what_it_draws_is_calibrated() -> None:
    model, generator = table_model(scale=1.5), torch.Generator().manual_seed(2)
    law_VV = model.table_VV.detach().softmax(1)
    rows = []
    for _ in range(300):
        row = [0]
        while len(row) < 20:
            row.append(int(torch.multinomial(law_VV[row[-1]], 1, generator=generator)))
        rows.append(item(row))
    assert evaluate(rows, model)["metrics"]["ece"]["value"] < 0.02
    sure = TableModel(3 * model.table_VV.detach())
    assert evaluate(rows, sure)["metrics"]["ece"]["value"] > 0.15


def test_scores_are_ranked_against_the_truth() -> None:
    noisy: Law = {index: 1 / 6 for index in range(1, 7)}
    model = laws_model({1: noisy, 2: {3: 1.0}, 3: {0: 0.9, 4: 0.1}}, 7)
    rows = [item([1, first, 3, 4], laws=[noisy, {3: 1.0}, {4: 1.0}]) for first in (2, 2, 2)]
    truth = evaluate(rows, model)["uncertainty"]
    assert truth["num_tokens"] == 9
    assert truth["mean_epistemic"] == pytest.approx(-math.log(0.1) / 3, rel=1e-3)
    assert truth["mean_aleatoric"] == pytest.approx(math.log(6) / 3)
    assert truth["rank_correlation"]["entropy"]["aleatoric"] > 0.5 > truth["rank_correlation"]["entropy"]["epistemic"]
    assert truth["rank_correlation"]["student_nll"]["epistemic"] > 0.5


def test_brier_and_selective_prediction_equal_a_literal_computation() -> None:
    model = table_model()
    items = [item(torch.randint(0, 7, (9,), generator=torch.Generator().manual_seed(seed)).tolist()) for seed in range(12)]
    result = evaluate(items, model)
    brier, tokens = 0.0, []
    for one in items:
        row = one.rows[0].input_ids
        for last, label in pairwise(row):
            law = model.table_VV[last].detach().double().softmax(0).tolist()
            brier += sum((q - (token == label)) ** 2 for token, q in enumerate(law))
            tokens.append((max(law), float(law.index(max(law)) != label)))
    assert result["metrics"]["brier"]["value"] == pytest.approx(brier / len(tokens))
    assert result["metrics"]["brier"]["standard_error"] > 0
    by_confidence: dict[float, list[float]] = {}
    for confidence, error in tokens:
        by_confidence.setdefault(round(confidence, 9), []).append(error)
    risks: list[float] = []
    errors, count = 0.0, 0
    for confidence in sorted(by_confidence, reverse=True):
        group = by_confidence[confidence]
        for taken in range(1, len(group) + 1):
            risks.append((errors + taken * sum(group) / len(group)) / (count + taken))
        errors, count = errors + sum(group), count + len(group)
    assert result["metrics"]["aurc"]["value"] == pytest.approx(sum(risks) / len(risks), abs=1e-6)
    assert 0 <= result["metrics"]["excess_aurc"]["value"] <= result["metrics"]["aurc"]["value"]
    assert len(result["risk_coverage"]) == 50
    for point in result["risk_coverage"]:
        assert point["risk"] == pytest.approx(risks[round(point["coverage"] * len(risks)) - 1], abs=1e-6)


def test_every_score_is_ranked_and_excess_where_a_reference_is_given() -> None:
    items = [item([1, 2, 3, 4], laws=[{2: 0.5, 5: 0.5}, {3: 1.0}, {4: 0.9, 0: 0.1}])]
    model, base, reference = (table_model(seed=seed) for seed in range(3))
    without = evaluate_sets(model, base, {"set": items}, PARAMS)["set"]["uncertainty"]
    given = evaluate_sets(model, base, {"set": items}, PARAMS, reference)["set"]["uncertainty"]
    assert list(without["rank_correlation"]) == ["student_nll", "entropy", "one_minus_confidence", "drift_kl"]
    assert (without["against"], given["against"]) == ("law", "law")
    assert set(given["rank_correlation"]) - set(without["rank_correlation"]) == {"excess"}
    assert given["rank_correlation"]["student_nll"] == without["rank_correlation"]["student_nll"]


def test_without_the_truth_a_reference_stands_for_it_and_the_table_says_so() -> None:
    items = [item([1, 2, 3, 4, 5, 6]), item([3, 1], [3, 2], kind="choice", gold=1)]
    model, base, reference = (table_model(seed=seed) for seed in range(3))
    table = evaluate_sets(model, base, {"set": items}, PARAMS, reference)["set"]["uncertainty"]
    rows = [one.rows[one.gold] for one in items]
    ours, theirs = join(score_rows(model, base, rows, 100)), join(score_rows(reference, reference, rows, 100))
    assert table["against"] == "reference" and table["num_tokens"] == 6
    assert table["mean_epistemic"] == pytest.approx(float((ours.nll - theirs.nll).mean()), abs=1e-6)
    assert table["mean_aleatoric"] == pytest.approx(float(theirs.entropy.mean()), abs=1e-6)
    wanted = spearmanr(ours.entropy, ours.nll - theirs.nll).statistic
    assert table["rank_correlation"]["entropy"]["epistemic"] == pytest.approx(wanted)
    assert "excess" not in table["rank_correlation"], "it is the yardstick here"


def test_real_data_have_no_truth_to_be_ranked_against() -> None:
    assert evaluate([item([1, 2, 3])], table_model())["uncertainty"] is None
    [statistics] = score_rows(table_model(), table_model(), [item([1, 2, 3]).rows[0]], 100)
    assert uncertainty_against_truth(statistics) is None


@pytest.mark.parametrize(("whose", "num_bad"), [("model", 3), ("base", 1)])
def test_a_model_whose_figures_are_not_finite_is_refused(whose: str, num_bad: int) -> None:
    broken = table_model()
    broken.table_VV.data[:] = math.nan
    model, base = (broken, table_model()) if whose == "model" else (table_model(), broken)
    with pytest.raises(
        ModelError,
        match=rf"set: the model's nll or its drift .* not finite on {num_bad} of 3 tokens and options.*training\.learning_rate",
    ):
        evaluate([item([1, 2], [1, 3], kind="choice")], model, base)


def test_sets_are_evaluated_apart_and_both_models_only_read() -> None:
    model, base = table_model(7, 0), table_model(7, 1)
    before = model.table_VV.clone()
    both = evaluate_sets(model, base, {"one": [item([1, 2])], "two": [item([3, 4])]}, PARAMS)
    assert list(both) == ["one", "two"]
    assert both["one"] == evaluate([item([1, 2])], model, base)
    assert torch.equal(model.table_VV, before) and model.table_VV.grad is None and not model.training
