"""Laws of what a look records: literal means and ranks by hand, and nothing made up where the truth is not known."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.weights import TokenFacts, TokenWeights
from components.training.probe_record import (
    Moment,
    ProbeRow,
    against_truth,
    all_scores,
    class_table,
    facts_of,
    mask_table,
    mean,
    number,
    score_table,
    truth_of,
    validation_table,
    weigh_probe,
)
from components.training.target_scoring import ScoredTokens
from components.uncertainty.token_classes import END_OF_TURN, WORD

OURS = PRESETS["uncertainty_aware"]
NAN = math.nan


def scored(nll: list[float], **columns: list[float]) -> ScoredTokens:
    """Tokens with this nll; the other columns are zero unless given."""
    names = ("entropy", "top_entropy", "confidence", "is_correct", "brier", "true_entropy", "true_kl", "teacher_kl")
    return ScoredTokens(
        nll=torch.tensor(nll), **{name: torch.tensor(columns.get(name, [0.0] * len(nll)), dtype=torch.float) for name in names}
    )


def facts(num_tokens: int, **given: Any) -> TokenFacts:
    return TokenFacts(
        is_target_N=torch.ones(num_tokens, dtype=torch.bool), row_N=torch.zeros(num_tokens, dtype=torch.long), **given
    )


def bits(text: str) -> Tensor:
    return torch.tensor([one == "1" for one in text])


def row(num_targets: int, **given: Any) -> ProbeRow:
    class_N = torch.full((num_targets,), WORD, dtype=torch.int8)
    return ProbeRow("r", [1] * (num_targets + 1), [False] + [True] * num_targets, class_N, **given)


MOMENT = Moment(step=10, epoch=1.0, threshold=1.5, distil_weight=0.7)


def test_the_mask_is_that_of_the_threshold_in_force_and_the_rest_is_distilled() -> None:
    tokens = scored([0.5, 1.5, 3.0, 1.0])
    weights = weigh_probe(OURS, tokens, tokens.nll, facts(4), MOMENT)
    assert weights.selected_N.tolist() == [False, True, True, False]
    assert weights.mle_N.tolist() == [0, 1, 1, 0]
    assert weights.distil_N.tolist() == pytest.approx([0.7, 0, 0, 0.7])


@pytest.mark.parametrize("select", ["high", "random"])
def test_nothing_is_masked_before_the_warm_up_is_over(select: Any) -> None:
    tokens = scored([0.5, 1.5, 3.0, 1.0])
    objective = replace(OURS, select=select, warmup_steps=11)
    known = facts(4, random_N=torch.tensor([0.9, 0.1, 0.9, 0.9]))
    assert bool(weigh_probe(objective, tokens, tokens.nll, known, MOMENT).selected_N.all())
    assert not bool(weigh_probe(replace(objective, warmup_steps=10), tokens, tokens.nll, known, MOMENT).selected_N.all())


def test_a_scope_that_has_no_threshold_makes_its_own() -> None:
    tokens = scored([0.0, 1.0, 5.0, 6.0])
    known = replace(facts(4), row_N=torch.tensor([0, 0, 1, 1]))
    moment = replace(MOMENT, threshold=None)
    by_row = weigh_probe(replace(OURS, scope="sequence"), tokens, tokens.nll, known, moment)
    together = weigh_probe(replace(OURS, scope="micro_batch"), tokens, tokens.nll, known, moment)
    assert by_row.selected_N.tolist() == [False, True, False, True]
    assert together.selected_N.tolist() == [False, False, True, True]


def test_entropy_weights_use_the_entropy_of_the_top_alone() -> None:
    tokens = scored([1.0], entropy=[9.0], top_entropy=[math.log(20) / 2])
    assert weigh_probe(PRESETS["eaft"], tokens, tokens.nll, facts(1), MOMENT).mle_N.tolist() == pytest.approx([0.5])


def test_every_score_is_computed_that_can_be_and_no_other() -> None:
    tokens = scored([1.0, 2.0], entropy=[0.3, 0.4])
    assert list(all_scores(OURS, tokens, facts(2))) == ["student_nll", "entropy"]
    columns = {"reference_nll": torch.tensor([0.5, 2.5]), "mutual_information": torch.tensor([0.1, 0.2]), "mine": torch.zeros(2)}
    teacher = torch.tensor([-3.0, -1.0])
    objective = replace(OURS, score="column", column="mine")
    found = all_scores(objective, tokens, facts(2, teacher_logprob_N=teacher, columns=columns))
    assert set(found) == {
        "student_nll",
        "entropy",
        "teacher_nll",
        "excess",
        "teacher_excess",
        "probability_gain",
        "mutual_information",
        "column",
    }
    assert found["excess"].tolist() == pytest.approx([0.5, -0.5])
    assert found["teacher_excess"].tolist() == pytest.approx([2.5, -1.5])
    assert found["probability_gain"].tolist() == pytest.approx([math.exp(-0.5) - math.exp(-3), math.exp(-2.5) - math.exp(-1)])


def test_the_class_table_holds_the_means_of_each_class() -> None:
    tokens = scored([1.0, 2.0, 6.0])
    known = facts(3, class_N=torch.tensor([WORD, END_OF_TURN, WORD]), teacher_logprob_N=torch.tensor([-1.0, -2.0, -4.0]))
    weights = TokenWeights(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 0.7, 0.0]), bits("101"))
    table = class_table(tokens, known, weights)
    assert table == {
        "end_of_turn": {
            "num_tokens": 1,
            "selected_fraction": 0.0,
            "mean_mle_weight": 0.0,
            "mean_distil_weight": 0.7,
            "mean_student_nll": 2.0,
            "mean_teacher_nll": 2.0,
        },
        "word": {
            "num_tokens": 2,
            "selected_fraction": 1.0,
            "mean_mle_weight": 0.75,
            "mean_distil_weight": 0.0,
            "mean_student_nll": 3.5,
            "mean_teacher_nll": 2.5,
        },
    }
    assert class_table(tokens, replace(known, teacher_logprob_N=None), weights)["word"]["mean_teacher_nll"] is None


def test_scores_are_ranked_like_scipy_on_the_tokens_whose_law_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    score, kl, entropy = (torch.rand(50, generator=generator) for _ in range(3))
    kl[:10] = entropy[:10] = NAN
    table = score_table({"student_nll": score}, "law", kl, entropy)
    assert table["student_nll"]["epistemic"] == pytest.approx(stats.spearmanr(score[10:], kl[10:]).statistic, abs=1e-5)
    assert table["student_nll"]["aleatoric"] == pytest.approx(stats.spearmanr(score[10:], entropy[10:]).statistic, abs=1e-5)


def test_the_truth_is_the_law_else_a_reference_else_unknown() -> None:
    laws = [{1: 1.0}, {1: 0.5, 2: 0.5}]
    reference = {"reference_nll": torch.tensor([0.5, 0.25]), "reference_entropy": torch.tensor([0.0, 1.0])}
    for rows, expected in (
        ([row(2, laws=laws, columns=reference), row(2, columns=reference)], "law"),
        ([row(2, columns=reference), row(2, columns=reference)], "reference"),
        ([row(2, columns=reference), row(2)], "none"),
        ([], "none"),
    ):
        assert truth_of(rows, facts_of(rows)) == expected
    tokens = scored([1.0, 1.0], true_kl=[0.3, NAN], true_entropy=[0.1, NAN])
    known = facts(2, columns=reference)
    assert against_truth("law", tokens, known) == (tokens.true_kl, tokens.true_entropy)
    epistemic, aleatoric = against_truth("reference", tokens, known)
    assert epistemic is not None and aleatoric is not None
    assert (epistemic.tolist(), aleatoric.tolist()) == ([0.5, 0.75], [0.0, 1.0])
    assert against_truth("reference", tokens, facts(2, columns={"reference_nll": torch.zeros(2)}))[1] is None
    assert against_truth("none", tokens, known) == (None, None)
    assert score_table({"entropy": tokens.nll}, "none", None, None) == {"entropy": {"epistemic": None, "aleatoric": None}}


def test_excess_is_not_told_from_the_reference_that_it_is_made_of() -> None:
    values = torch.arange(5.0)
    table = score_table({"excess": values, "student_nll": values}, "reference", values, -values)
    assert table == {"excess": {"epistemic": None, "aleatoric": -1.0}, "student_nll": {"epistemic": 1.0, "aleatoric": -1.0}}


def test_the_mask_table_tells_what_is_picked() -> None:
    #                  learnable  known  learnable  noise  noise  not known
    epistemic = torch.tensor([2.0, 0.01, 0.9, 0.0, 3.0, NAN])
    aleatoric = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, NAN])
    table = mask_table(bits("110111"), epistemic, aleatoric)
    assert table == {
        "epistemic_share": 0.25,
        "known_share": 0.25,
        "noise_share": 0.5,
        "epistemic_coverage": 0.5,
        "noise_coverage": 1.0,
    }
    assert set(mask_table(bits("110111"), None, None).values()) == {None}
    nothing = mask_table(bits("000000"), epistemic, aleatoric)
    assert nothing["epistemic_share"] is None and nothing["epistemic_coverage"] == 0.0


def test_rows_are_joined_in_order_and_a_column_counts_only_where_every_row_has_it() -> None:
    one = row(2, teacher_logprob_N=torch.tensor([-1.0, -2.0]), columns={"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)})
    other = row(1, teacher_logprob_N=torch.tensor([-3.0]), columns={"a": torch.tensor([3.0])})
    joined = facts_of([one, other])
    assert joined.row_N.tolist() == [0, 0, 1] and joined.is_target_N.tolist() == [True] * 3
    assert list(joined.columns) == ["a"] and joined.columns["a"].tolist() == [1, 2, 3]
    assert joined.teacher_logprob_N is not None and joined.teacher_logprob_N.tolist() == [-1, -2, -3]
    assert facts_of([one, row(1)]).teacher_logprob_N is None


def test_validation_figures_are_literal_and_absent_without_tokens() -> None:
    tokens = scored([1.0, 3.0], confidence=[0.9, 0.4], is_correct=[0.0, 1.0], brier=[0.5, 1.5])
    assert validation_table(tokens) == {"nll": 2.0, "ece": pytest.approx(0.75), "brier": 1.0, "aurc": pytest.approx(0.75)}
    assert validation_table(scored([])) is None


def test_numbers_that_do_not_exist_are_none() -> None:
    assert [number(value) for value in (NAN, math.inf, 1 / 3)] == [None, None, 0.333333]
    assert mean(torch.empty(0)) is None and mean(torch.tensor([NAN, 2.0])) == 2.0


def test_the_default_objective_of_a_plain_preset_names_a_score_that_exists() -> None:
    assert Objective(select="all", distil_on="none").score in all_scores(PRESETS["sft"], scored([1.0]), facts(1))
