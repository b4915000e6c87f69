"""Laws of the correction: Holm's by hand, one wrong verdict in twenty families at most, intervals that agree with verdicts."""

import numpy as np
import pytest

from components.evaluation.multiplicity import holm, judged
from components.evaluation.statistics import Difference, ItemScores, paired_difference


def test_holm_is_what_one_works_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, 0.001, 0.5, 0.9]) == pytest.approx([0.12, 0.004, 1.0, 1.0])
    assert holm([]) == []


def test_an_adjusted_value_is_never_below_its_own_and_keeps_the_order() -> None:
    raw = np.random.default_rng(0).random(30) ** 3
    adjusted = holm(list(raw))
    assert all(a >= b for a, b in zip(adjusted, raw, strict=True))
    assert list(np.argsort(adjusted, kind="stable")[:3]) == list(np.argsort(raw)[:3])


def differences(generator: np.random.Generator, gains: list[float]) -> list[Difference]:
    found = []
    for gain in gains:
        ours, theirs = (generator.random((1, 60)) < 0.4 + gain, generator.random((1, 60)) < 0.4)
        made = [ItemScores(tuple(map(str, range(60))), one.astype(float), np.ones(60)) for one in (ours, theirs)]
        found.append(paired_difference({"a": made[0]}, {"a": made[1]}, num_resamples=150, confidence=0.95, seed=0))
    return found


def test_a_family_without_any_difference_seldom_has_a_verdict() -> None:
    """Without correction half of the families of ten would have one."""
    generator = np.random.default_rng(1)
    wrong = {"holm": 0, "none": 0}
    for _ in range(120):
        family = differences(generator, [0.0] * 10)
        for correction in ("holm", "none"):
            told = judged(family, confidence=0.95, higher_is_better=True, correction=correction)
            wrong[correction] += any(one["verdict"] != "tie" for one in told)
    assert wrong["holm"] / 120 <= 0.1 and wrong["none"] / 120 >= 0.25


def test_the_adjusted_interval_holds_zero_exactly_where_the_verdict_is_a_tie() -> None:
    family = differences(np.random.default_rng(2), [0.0, 0.1, 0.2, 0.25, 0.3, 0.5])
    told = judged(family, confidence=0.95, higher_is_better=True, correction="holm")
    assert {one["verdict"] for one in told} >= {"tie", "better"}
    for one in told:
        assert (one["adjusted_low"] <= 0 <= one["adjusted_high"]) == (one["verdict"] == "tie")
        assert one["adjusted_low"] <= one["low"] and one["adjusted_high"] >= one["high"]


def test_more_is_worse_where_lower_is_better() -> None:
    family = differences(np.random.default_rng(3), [0.5])
    [up] = judged(family, confidence=0.95, higher_is_better=True, correction="holm")
    [down] = judged(family, confidence=0.95, higher_is_better=False, correction="holm")
    assert (up["verdict"], down["verdict"]) == ("better", "worse")
