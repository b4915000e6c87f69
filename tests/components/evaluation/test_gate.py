"""Laws of the gate: better in-domain and not worse outside passes, all else is rejected, and the reasons carry the numbers."""

from typing import Any

import pytest

from components.errors import ArtifactError
from components.evaluation.gate import GateVerdict, judge
from components.params import ComparisonParams, RegistrationParams
from tests.components.evaluation.conftest import evaluation

BASE = evaluation("base", None, in_domain=0.3, copy=0.9, sort=0.8)
CHAMPION = evaluation("champion", in_domain=0.7, copy=0.85, sort=0.75)


def verdict(candidate: dict[str, Any], champion: dict[str, Any] | None = None, **limits: float) -> GateVerdict:
    registration = RegistrationParams(**{"min_in_domain_gain": 0.0, "max_ood_loss": 0.02, **limits})
    return judge(candidate, BASE, champion, registration, ComparisonParams(num_resamples=500))


@pytest.mark.parametrize(
    ("kind", "shares", "passes"),
    [
        ("better in both", {"in_domain": 0.9, "copy": 0.95, "sort": 0.9}, True),
        ("better in-domain, equal outside", {"in_domain": 0.9, "copy": 0.9, "sort": 0.8}, True),
        ("better in-domain, a little worse outside", {"in_domain": 0.9, "copy": 0.895, "sort": 0.8}, True),
        ("better in-domain, forgetful", {"in_domain": 0.99, "copy": 0.4, "sort": 0.3}, False),
        ("better in-domain, forgets one set", {"in_domain": 0.99, "copy": 0.9, "sort": 0.6}, False),
        ("equal", {"in_domain": 0.3, "copy": 0.9, "sort": 0.8}, False),
        ("worse in-domain", {"in_domain": 0.1, "copy": 0.95, "sort": 0.9}, False),
        ("worse in both", {"in_domain": 0.1, "copy": 0.4, "sort": 0.3}, False),
    ],
)
def test_the_verdict_against_the_base(kind: str, shares: dict[str, float], passes: bool) -> None:
    found = verdict(evaluation("candidate", **shares))
    assert found.passed == passes, found.reasons
    assert found.word == ("pass" if passes else "reject")


@pytest.mark.parametrize(
    ("kind", "shares", "passes"),
    [
        ("like the champion", {"in_domain": 0.7, "copy": 0.85, "sort": 0.75}, False),  # it loses .05 against the base
        ("as good in-domain, no loss outside", {"in_domain": 0.7, "copy": 0.9, "sort": 0.8}, True),
        ("better than both", {"in_domain": 0.9, "copy": 0.95, "sort": 0.9}, True),
        ("between base and champion", {"in_domain": 0.5, "copy": 0.9, "sort": 0.8}, False),
    ],
)
def test_the_verdict_against_base_and_champion(kind: str, shares: dict[str, float], passes: bool) -> None:
    found = verdict(evaluation("candidate", **shares), CHAMPION)
    assert found.passed == passes, found.reasons
    assert len(found.reasons) == 4


def test_a_tie_with_the_champion_in_domain_is_enough() -> None:
    champion = evaluation("champion", in_domain=0.7, copy=0.9, sort=0.8)
    assert verdict(evaluation("candidate", in_domain=0.7, copy=0.9, sort=0.8), champion).passed


def test_the_margins_are_those_of_the_parameters() -> None:
    gains, loses = evaluation("c", in_domain=0.4, copy=0.9, sort=0.8), evaluation("c", in_domain=0.9, copy=0.85, sort=0.75)
    assert verdict(gains).passed and not verdict(gains, min_in_domain_gain=0.2).passed
    assert not verdict(loses).passed and verdict(loses, max_ood_loss=0.1).passed


def test_a_gain_that_few_items_show_does_not_pass() -> None:
    candidate, base = evaluation("candidate", in_domain=0.35, copy=0.9, sort=0.8), evaluation("base", None, in_domain=0.3)
    for one in (candidate, base):
        one["sets"]["in_domain"]["items"] = one["sets"]["in_domain"]["items"][40:80:8]
    registration = RegistrationParams(max_ood_loss=1.0)
    assert not judge(candidate, base, None, registration, ComparisonParams(num_resamples=500)).passed


def test_the_reasons_carry_the_numbers_and_say_which_question_failed() -> None:
    first, second = verdict(evaluation("candidate", in_domain=0.9, copy=0.4, sort=0.3)).reasons
    assert first.startswith("in_domain_accuracy against base: +0.600 [+0.5") and first.endswith("must be above +0.000: passes")
    assert second.startswith("ood_accuracy against base: -0.500 [-0.5") and second.endswith("must be above -0.020: fails")


def test_the_verdict_is_the_same_each_time() -> None:
    candidate = evaluation("candidate", in_domain=0.5, copy=0.9, sort=0.79)
    assert verdict(candidate, CHAMPION) == verdict(candidate, CHAMPION)


def test_a_champion_that_was_evaluated_on_other_items_is_refused() -> None:
    champion = evaluation("champion")
    champion["sets"]["ood/copy"]["items"] = champion["sets"]["ood/copy"]["items"][:50]
    with pytest.raises(ArtifactError, match="different items of ood/copy"):
        verdict(evaluation("candidate", in_domain=0.9, copy=0.95, sort=0.9), champion)
