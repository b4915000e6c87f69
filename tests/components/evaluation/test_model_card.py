"""Laws of the model card: the Hub's own parser takes it, it is about the candidate, and it claims nothing that is not known."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from huggingface_hub import ModelCard

from components.evaluation.model_card import render_model_card
from tests.components.evaluation.fake_statistics import with_statistics
from tests.components.evaluation.test_report import CONTEXT, compare

SOURCE = {
    "name": "a|b.jsonl",
    "origin": None,
    "licence": "mit",
    "weight": None,
    "schemas": {"alpaca": 3},
    "rows_read": 3,
    "rows_not_drawn": 0,
    "rows_used": {"train": 3, "validation": 0, "test": 0},
    "quarantined_by_kind": {},
    "target_tokens": 30,
}
CARD = {
    "counts": {"rows_used": {"train": 3, "validation": 0, "test": 0}},
    "sources": [SOURCE, {**SOURCE, "name": "hub", "origin": "owner/set@0123abc", "licence": None}],
}


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    return with_statistics(compare())


def test_the_hubs_parser_takes_the_front_matter(comparison: dict[str, Any]) -> None:
    card = ModelCard(render_model_card(comparison, replace(CONTEXT, base_hub_id="owner/base"), CARD))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.base_model == "owner/base" and card.data.datasets == ["owner/set"]
    assert card.data.license is None, "the licence is for a person to say"
    assert card.data.model_name == comparison["candidate"]["model"]


def test_the_index_holds_the_candidates_own_figures(comparison: dict[str, Any]) -> None:
    card = ModelCard(render_model_card(comparison, CONTEXT, None))
    method, model = (comparison["candidate"][name] for name in ("preset", "model"))
    place = comparison["methods"][method]["models"].index(model)
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    figures = comparison["methods"][method]["metrics"]
    assert found["in-domain accuracy"] == round(figures["in_domain_accuracy"]["values"][place], 6)
    assert found["OOD accuracy (mean of the sets)"] == round(figures["ood_accuracy"]["values"][place], 6)
    assert found["nll of the base's own texts (nats/token)"] == 1.5
    assert "in-domain exact match" not in found


def test_a_base_and_sets_that_are_not_on_the_hub_are_not_named_as_if(comparison: dict[str, Any]) -> None:
    card = ModelCard(render_model_card(comparison, CONTEXT, {**CARD, "sources": [SOURCE]}))
    assert card.data.base_model is None and card.data.datasets is None


def test_every_table_is_whole(comparison: dict[str, Any]) -> None:
    lines = render_model_card(comparison, CONTEXT, CARD).splitlines()
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            count = [line.replace("\\|", "").count("|") for line in (above, below)]
            assert count[0] == count[1], (above, below)
    assert "a\\|b.jsonl" in "\n".join(lines)
    assert not any(above == below == "" for above, below in pairwise(lines))


def test_gate_limits_and_reproduction_are_told(comparison: dict[str, Any]) -> None:
    text = render_model_card(comparison, CONTEXT, CARD)
    assert "### Gate: reject" in text and "| missed |" in text
    assert "± 0.017" in text and "Not asked of ood/copy: 3 too long." in text
    assert f"git checkout {CONTEXT.git_commit} && make repro" in text
    assert str(CONTEXT.base_fingerprint) in text and comparison["candidate"]["model_fingerprint"] in text
    assert "The gate" not in render_model_card(compare(), CONTEXT, CARD)
