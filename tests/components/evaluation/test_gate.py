"""Laws of the gate: better in-domain and not worse outside passes, worse is rejected, what cannot be told is undecided."""

from typing import Any

import pytest

from components.errors import ArtifactError
from components.evaluation.gate import judge
from components.evaluation.gate_text import render_gate
from components.params import ComparisonParams, GateMargins, RegistrationParams
from tests.components.evaluation.conftest import evaluation

BASE = evaluation("base", None, in_domain=0.3, copy=0.9, sort=0.8)
CHAMPION = evaluation("champion", in_domain=0.7, copy=0.85, sort=0.75)
VERSION = {"name": "ballast", "version": 3, "model_fingerprint": "f"}


def verdict(candidate: dict[str, Any], champion: dict[str, Any] | None = None, **limits: Any) -> dict[str, Any]:
    settings = {name: limits.pop(name) for name in ("in_domain_metric",) if name in limits}
    margins = GateMargins(**{"min_in_domain_gain": 0.0, "max_ood_loss": 0.02, **limits})
    registration = RegistrationParams(against_base=margins, against_champion=margins, **settings)
    return judge(candidate, BASE, champion, registration, ComparisonParams(num_resamples=500), VERSION if champion else None)


@pytest.mark.parametrize(
    ("kind", "shares", "expected"),
    [
        ("better in both", {"in_domain": 0.9, "copy": 0.95, "sort": 0.9}, "pass"),
        ("better in-domain, equal outside", {"in_domain": 0.9, "copy": 0.9, "sort": 0.8}, "pass"),
        ("better in-domain, a little worse outside", {"in_domain": 0.9, "copy": 0.895, "sort": 0.8}, "pass"),
        ("better in-domain, forgetful", {"in_domain": 0.99, "copy": 0.4, "sort": 0.3}, "reject"),
        ("better in-domain, forgets one set", {"in_domain": 0.99, "copy": 0.9, "sort": 0.6}, "reject"),
        ("better in-domain, outside near the margin", {"in_domain": 0.99, "copy": 0.88, "sort": 0.78}, "undecided"),
        ("equal", {"in_domain": 0.3, "copy": 0.9, "sort": 0.8}, "reject"),
        ("hardly better in-domain", {"in_domain": 0.305, "copy": 0.9, "sort": 0.8}, "undecided"),
        ("worse in-domain", {"in_domain": 0.1, "copy": 0.95, "sort": 0.9}, "reject"),
        ("worse in both", {"in_domain": 0.1, "copy": 0.4, "sort": 0.3}, "reject"),
    ],
)
def test_the_verdict_against_the_base(kind: str, shares: dict[str, float], expected: str) -> None:
    found = verdict(evaluation("candidate", **shares))
    assert found["verdict"] == expected, found["answers"]
    assert found["exit_code"] == {"pass": 0, "reject": 4, "undecided": 5}[expected]


@pytest.mark.parametrize(
    ("kind", "shares", "expected"),
    [
        ("like the champion", {"in_domain": 0.7, "copy": 0.85, "sort": 0.75}, "reject"),
        ("as good in-domain, no loss outside", {"in_domain": 0.7, "copy": 0.9, "sort": 0.8}, "reject"),
        ("better than both", {"in_domain": 0.9, "copy": 0.95, "sort": 0.9}, "pass"),
        ("between base and champion", {"in_domain": 0.5, "copy": 0.9, "sort": 0.8}, "reject"),
    ],
)
def test_the_verdict_against_base_and_champion(kind: str, shares: dict[str, float], expected: str) -> None:
    found = verdict(evaluation("candidate", **shares), CHAMPION)
    assert found["verdict"] == expected, found["answers"]
    assert [answer["against"] for answer in found["answers"]] == ["base", "base", "champion", "champion"]
    assert found["champion"] == {"name": "ballast", "version": 3}


def test_a_negative_gain_makes_a_tie_with_the_champion_enough() -> None:
    champion = evaluation("champion", in_domain=0.7, copy=0.9, sort=0.8)
    assert (
        verdict(evaluation("candidate", in_domain=0.7, copy=0.9, sort=0.8), champion, min_in_domain_gain=-0.02)["verdict"]
        == "pass"
    )


def test_the_margins_are_those_of_the_parameters() -> None:
    gains, loses = evaluation("c", in_domain=0.4, copy=0.9, sort=0.8), evaluation("c", in_domain=0.9, copy=0.85, sort=0.75)
    assert verdict(gains)["verdict"] == "pass" and verdict(gains, min_in_domain_gain=0.2)["verdict"] == "reject"
    assert verdict(loses)["verdict"] == "reject" and verdict(loses, max_ood_loss=0.1)["verdict"] == "pass"


def test_every_single_set_is_asked_when_a_margin_for_sets_is_given() -> None:
    """The mean of the sets hides that one is forgotten while another improves."""
    candidate = evaluation("c", in_domain=0.9, copy=1.0, sort=0.73)
    assert verdict(candidate)["verdict"] == "pass"
    found = verdict(candidate, max_ood_set_loss=0.02)
    assert found["verdict"] == "reject"
    assert {answer["set"]: answer["outcome"] for answer in found["answers"][2:]} == {"ood/copy": "met", "ood/sort": "missed"}


def test_of_an_nll_the_fall_is_the_gain() -> None:
    shares = {"in_domain": 0.3, "copy": 0.9, "sort": 0.8}
    better, worse = (evaluation("c", nll=nll, **shares) for nll in (0.5, 1.5))
    assert verdict(better, in_domain_metric="nll")["verdict"] == "pass"
    assert verdict(worse, in_domain_metric="nll")["verdict"] == "reject"


def test_a_gain_that_few_items_show_is_undecided_and_says_what_could_have_been_seen() -> None:
    candidate, base = evaluation("candidate", in_domain=0.35, copy=0.9, sort=0.8), evaluation("base", None, in_domain=0.3)
    for one in (candidate, base):
        one["sets"]["in_domain"]["items"] = one["sets"]["in_domain"]["items"][40:80:8]
    registration = RegistrationParams(against_base=GateMargins(max_ood_loss=1.0))
    found = judge(candidate, base, None, registration, ComparisonParams(num_resamples=500))
    assert found["verdict"] == "undecided"
    assert found["answers"][0]["minimum_detectable"] > found["answers"][0]["value"]


def test_the_answers_carry_the_numbers_and_say_which_question_failed() -> None:
    first, second = verdict(evaluation("candidate", in_domain=0.9, copy=0.4, sort=0.3))["answers"]
    assert first["sentence"].startswith("in_domain_accuracy against base: +0.600 [+0.5")
    assert first["sentence"].endswith("must be above +0.000: met") and first["outcome"] == "met"
    assert second["sentence"].startswith("ood_accuracy against base: -0.500 [-0.5") and second["outcome"] == "missed"


def test_the_verdict_is_the_same_each_time() -> None:
    candidate = evaluation("candidate", in_domain=0.5, copy=0.9, sort=0.79)
    assert verdict(candidate, CHAMPION) == verdict(candidate, CHAMPION)


@pytest.mark.parametrize("kind", ["other items", "a set is missing", "absent"])
def test_a_champion_that_cannot_be_compared_leaves_the_gate_undecided_with_the_reason(kind: str) -> None:
    champion: dict[str, Any] = evaluation("champion")
    if kind == "other items":
        champion["sets"]["ood/copy"]["items"] = champion["sets"]["ood/copy"]["items"][:50]
    elif kind == "a set is missing":
        del champion["sets"]["ood/copy"]
    else:
        champion = {"absent": "it reads another tokenizer's tokens"}
    found = verdict(evaluation("candidate", in_domain=0.9, copy=0.95, sort=0.9), champion)
    assert found["verdict"] == "undecided"
    assert any("champion" in answer["sentence"] and answer["outcome"] == "undecided" for answer in found["answers"])


def test_a_base_on_other_items_is_an_error_and_no_verdict() -> None:
    candidate = evaluation("candidate", in_domain=0.9)
    candidate["sets"]["in_domain"]["items"].pop()
    with pytest.raises(ArtifactError, match="different items of in_domain"):
        verdict(candidate)


def test_the_champion_itself_passes_against_itself() -> None:
    candidate = evaluation("candidate", in_domain=0.9, copy=0.95, sort=0.9)
    found = verdict(candidate, candidate)
    assert found["verdict"] == "pass" and "is the champion" in found["answers"][2]["sentence"]


def test_the_table_begins_with_the_verdict_and_has_a_row_for_each_question() -> None:
    found = verdict(evaluation("candidate", in_domain=0.9, copy=0.95, sort=0.9), {"absent": "why not"})
    text = render_gate(found)
    assert text.startswith("**undecided")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(found["answers"]) and all(row.count("|") == rows[0].count("|") for row in rows)
    assert "why not" in rows[-1] and "+0.600" in rows[1]
