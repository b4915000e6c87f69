"""One or two examples of the candidate token by token, before, during and after: the short form of tokens.html."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from components.evaluation.probes import Example, Probes, examples_of, first_model
from components.evaluation.report_figures import method_index
from components.evaluation.token_cards import Card, shown_card
from components.evaluation.token_pages import cut_card

MAX_EXAMPLES, MAX_TOKENS = 2, 90
STAGES = ("before", "during", "after")


def token_section(comparison: Mapping[str, Any], probes: Probes) -> list[dict[str, Any]]:
    """Per example its lines; empty where the candidate's probes have none."""
    method = comparison["candidate"]["preset"]
    model = first_model(comparison, probes, method)
    if model is None:
        return []
    index = method_index(comparison, method)
    cards = [Card(method, model, index, None, example, 0) for example in examples_of(probes[model])[:MAX_EXAMPLES]]
    return [_example(cut_card(card, MAX_TOKENS, len(card.example.steps))) for card in cards]


def _example(card: Card) -> dict[str, Any]:
    """Coloured by the student's loss, which moves with training; many masks' scores stand still."""
    lines = []
    for name, place in zip(STAGES, places(len(card.example.steps)), strict=False):
        alone: Example = replace(card.example, steps=[card.example.steps[place]])
        shown = shown_card(replace(card, example=alone), 0, "student", {})
        lines.append({"name": name, "step": alone.steps[0].step, **shown})
    if len(lines) == 2:
        lines[1]["name"] = STAGES[-1]
    return {"row_id": card.example.row_id, "model": card.model, "lines": lines}


def places(num_steps: int) -> list[int]:
    """The first step, one in the middle, the last; fewer where there are fewer."""
    return list(dict.fromkeys((0, num_steps // 2, num_steps - 1)))
