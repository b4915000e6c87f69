"""One or two examples of the candidate token by token, before, during and after: the short form of tokens.html."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from components.evaluation.probes import Example, Probes, examples_of, first_model, score_of
from components.evaluation.report_figures import method_index
from components.evaluation.token_cards import Card, shown_card
from components.evaluation.token_pages import cut_card, full_colours

MAX_EXAMPLES, MAX_TOKENS = 2, 90
STAGES = ("before", "during", "after")


def token_section(comparison: Mapping[str, Any], probes: Probes) -> list[dict[str, Any]]:
    """Per example its lines; empty where the candidate's probes have none."""
    method = comparison["candidate"]["preset"]
    model = first_model(comparison, probes, method)
    if model is None:
        return []
    score, index = score_of(probes[model]), method_index(comparison, method)
    cards = [Card(method, model, index, score, example, 0) for example in examples_of(probes[model])[:MAX_EXAMPLES]]
    cards = [cut_card(card, MAX_TOKENS, len(card.example.steps)) for card in cards]
    caps = full_colours(cards)
    return [_example(card, "score" if score else "student", caps) for card in cards]


def _example(card: Card, quantity: str, caps: Mapping[str, float]) -> dict[str, Any]:
    lines = []
    for name, place in zip(STAGES, places(len(card.example.steps)), strict=False):
        alone: Example = replace(card.example, steps=[card.example.steps[place]])
        shown = shown_card(replace(card, example=alone), 0, quantity, caps)
        lines.append({"name": name, "step": alone.steps[0].step, **shown})
    if len(lines) == 2:
        lines[1]["name"] = STAGES[-1]
    return {"row_id": card.example.row_id, "model": card.model, "score": card.score, "lines": lines}


def places(num_steps: int) -> list[int]:
    """The first step, one in the middle, the last; fewer where there are fewer."""
    return list(dict.fromkeys((0, num_steps // 2, num_steps - 1)))
