"""tokens.html: chosen examples token by token, what each weighs and how surprising it is, before, during and after training.

Readable without JavaScript (the first probe, coloured by the default quantity; a token's numbers are its title); with it, the
step and the quantity can be chosen. Everything is embedded, and the page stays below MAX_PAGE_BYTES whatever it is given.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.evaluation.page import render_page
from components.evaluation.probes import Example, ExampleStep, Probes, examples_of, first_model, score_of
from components.evaluation.report_figures import method_index
from components.evaluation.token_cards import QUANTITIES, Card, embedded_card, grid, shown_card
from components.objectives.objective import SCORES_NOT_IN_NATS

MAX_PAGE_BYTES = 3_000_000
MAX_STEPS = 24
BYTES_PER_TOKEN, BYTES_PER_TOKEN_AND_STEP = 420, 24
"""At most, of the page: markup and title of a target token, its four numbers at one step."""
BYTES_PER_GRID = 40_000
"""At most, of the grid of all steps under an example."""


def render_token_page(comparison: Mapping[str, Any], probes: Probes) -> str:
    """The page of the first seed of every method that has examples."""
    cards = thin(list(_cards(comparison, probes)))
    caps = full_colours(cards)
    steps = sorted({step.step for card in cards for step in card.example.steps})
    quantity = "score" if any(card.score for card in cards) else "student"
    shown = [shown_card(card, number, quantity, caps) for number, card in enumerate(cards)]
    if has_grids(cards):
        shown = [{**own, "grid": grid(card, quantity, caps)} for own, card in zip(shown, cards, strict=True)]
    return render_page(
        "token_pages.html.jinja",
        rows={row: [card for card in shown if card["row_id"] == row] for row in dict.fromkeys(card["row_id"] for card in shown)},
        steps=[(step, step_name(step, steps)) for step in steps],
        quantities=[(key, name) for key, name in QUANTITIES.items() if _is_known(key, cards)],
        quantity=quantity,
        has_negative=any((value or 0) < 0 for card in cards for step in card.example.steps for value in step.score),
        embedded=json.dumps([embedded_card(card, caps) for card in cards], separators=(",", ":")),
    )


def _cards(comparison: Mapping[str, Any], probes: Probes) -> Iterable[Card]:
    for method in comparison["methods"]:
        if method != "base" and (model := first_model(comparison, probes, method)):
            probe = probes[model]
            for example in examples_of(probe):
                yield Card(method, model, method_index(comparison, method), score_of(probe), example, 0)


def thin(cards: Sequence[Card]) -> list[Card]:
    """At most MAX_STEPS steps, and of each example as many tokens as the page has room for."""
    num_steps = min(MAX_STEPS, max((len(card.example.steps) for card in cards), default=0))
    grids = BYTES_PER_GRID * len(cards) * has_grids(cards)
    room = (MAX_PAGE_BYTES - 200_000 - grids) // (BYTES_PER_TOKEN + BYTES_PER_TOKEN_AND_STEP * num_steps)
    return [cut_card(card, room // len(cards), num_steps) for card in cards]


def has_grids(cards: Sequence[Card]) -> bool:
    """Whether there is room for them."""
    return BYTES_PER_GRID * len(cards) <= MAX_PAGE_BYTES // 2


def cut_card(card: Card, max_tokens: int, num_steps: int) -> Card:
    """Its first tokens and so many steps, the first and the last among them."""
    example = card.example
    size = min(len(example.texts), max_tokens)
    kept_targets = sum(example.is_target[:size])
    last = len(example.steps) - 1
    places = dict.fromkeys(round(last * place / max(1, num_steps - 1)) for place in range(num_steps))
    steps = [_cut_step(example.steps[place], kept_targets) for place in places]
    cut = Example(
        example.row_id,
        example.texts[:size],
        example.is_target[:size],
        example.classes[:kept_targets],
        example.teacher_nll[:kept_targets],
        steps,
    )
    return Card(card.method, card.model, card.index, card.score, cut, len(example.texts) - size)


def _cut_step(step: ExampleStep, size: int) -> ExampleStep:
    lists = (step.score, step.student_nll, step.mle_weight, step.distil_weight)
    score, student, mle, distil = (values[:size] for values in lists)
    return ExampleStep(step.step, score, student, mle, distil)  # type: ignore[arg-type]


def full_colours(cards: Sequence[Card]) -> dict[str, float]:
    """Of scores that are not in nats, the value with the full colour: the 95th percentile of its size over all steps."""
    caps: dict[str, float] = {}
    for name in dict.fromkeys(card.score for card in cards):
        if name in SCORES_NOT_IN_NATS:
            values = [value for card in cards if card.score == name for step in card.example.steps for value in step.score]
            caps[name] = _percentile(values)
    return caps


def _percentile(values: Iterable[float | None], share: float = 0.95) -> float:
    ordered = sorted(abs(value) for value in values if value is not None)
    return (ordered[int(share * (len(ordered) - 1))] if ordered else 0.0) or 1.0


def step_name(step: int, steps: Sequence[int]) -> str:
    if step == steps[0]:
        return "before" if step == 0 else f"first ({step})"
    return f"after ({step})" if step == steps[-1] else str(step)


def _is_known(quantity: str, cards: Sequence[Card]) -> bool:
    if quantity == "score":
        return any(card.score for card in cards)
    return quantity == "student" or any(value is not None for card in cards for value in card.example.teacher_nll)
