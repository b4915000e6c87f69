"""tokens.html: chosen examples token by token, what each weighs and how surprising it is, before, during and after training.

Readable without JavaScript (the first probe, coloured by the default quantity; a token's numbers are its title); with it, the
step and the quantity can be chosen. Everything is embedded, and the page stays below MAX_PAGE_BYTES whatever it is given.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.evaluation.page import render_page
from components.evaluation.probes import Example, ExampleStep, Probes, examples_of, first_model
from components.evaluation.report_figures import method_index
from components.evaluation.token_text import Piece, direction, pieces

MAX_PAGE_BYTES = 3_000_000
MAX_STEPS = 24
MAX_PROMPT_RUN = 80
"""Of a longer run of prompt tokens only the last ones are shown."""
BYTES_PER_TOKEN, BYTES_PER_TOKEN_AND_STEP = 420, 24
"""At most, of the page: markup and title of a target token, its four numbers at one step."""
MAX_GRID_CELLS, BYTES_PER_GRID = 600, 40_000
"""Rows with more target tokens x steps have no grid of all steps."""
QUANTITIES = {"score": "score of the mask", "student": "student's loss", "teacher": "base's loss"}


@dataclass(frozen=True)
class Card:
    """One example under one method; `num_left_out` tokens of it are not on the page."""

    method: str
    model: str
    index: int
    score: str | None
    example: Example
    num_left_out: int


@dataclass(frozen=True)
class Cell:
    """One token as the page shows it. `number`: its place among the targets; None on a prompt token."""

    pieces: list[Piece]
    number: int | None
    marks: str = ""
    heat: int = 0
    title: str = ""
    num_hidden: int = 0


def render_token_page(comparison: Mapping[str, Any], probes: Probes) -> str:
    """The page of the first seed of every method that has examples."""
    cards = thin(list(_cards(comparison, probes)))
    caps = full_colours(cards)
    steps = sorted({step.step for card in cards for step in card.example.steps})
    quantity = "score" if any(card.score for card in cards) else "student"
    shown = [_shown(card, number, quantity, caps) for number, card in enumerate(cards)]
    if has_grids(cards):
        shown = [{**own, "grid": _grid(card, quantity, caps)} for own, card in zip(shown, cards, strict=True)]
    return render_page(
        "token_pages.html.jinja",
        rows={row: [card for card in shown if card["row_id"] == row] for row in dict.fromkeys(card["row_id"] for card in shown)},
        steps=[(step, step_name(step, steps)) for step in steps],
        quantities=[(key, name) for key, name in QUANTITIES.items() if _is_known(key, cards)],
        quantity=quantity,
        loss_cap=caps["student_nll"],
        has_negative=any((value or 0) < 0 for card in cards for step in card.example.steps for value in step.score),
        embedded=json.dumps([_embedded(card, caps) for card in cards], separators=(",", ":")),
    )


def _cards(comparison: Mapping[str, Any], probes: Probes) -> Iterable[Card]:
    for method in comparison["methods"]:
        if method != "base" and (model := first_model(comparison, probes, method)):
            probe = probes[model]
            for example in examples_of(probe):
                yield Card(method, model, method_index(comparison, method), probe.get("score"), example, 0)


def thin(cards: Sequence[Card]) -> list[Card]:
    """At most MAX_STEPS steps, and of each example as many tokens as the page has room for."""
    num_steps = min(MAX_STEPS, max((len(card.example.steps) for card in cards), default=0))
    grids = BYTES_PER_GRID * len(cards) * has_grids(cards)
    room = (MAX_PAGE_BYTES - 200_000 - grids) // (BYTES_PER_TOKEN + BYTES_PER_TOKEN_AND_STEP * num_steps)
    return [_cut(card, room // len(cards), num_steps) for card in cards]


def has_grids(cards: Sequence[Card]) -> bool:
    """Whether there is room for them."""
    return BYTES_PER_GRID * len(cards) <= MAX_PAGE_BYTES // 2


def _cut(card: Card, max_tokens: int, num_steps: int) -> Card:
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
    """Score -> the value with the full colour: the 95th percentile of its size over all steps. Losses share one."""
    losses = [value for card in cards for step in card.example.steps for value in step.student_nll]
    losses += [value for card in cards for value in card.example.teacher_nll]
    caps = {"student_nll": _percentile(losses)}
    for name in dict.fromkeys(card.score for card in cards if card.score):
        values = [value for card in cards if card.score == name for step in card.example.steps for value in step.score]
        caps[name] = caps["student_nll"] if name.endswith("_nll") else _percentile(values)
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


# --- what the template and the script are given ----------------------------------------------------------------------


def _shown(card: Card, number: int, quantity: str, caps: Mapping[str, float]) -> dict[str, Any]:
    example, step = card.example, card.example.steps[0]
    return {
        "number": number,
        "method": card.method,
        "model": card.model,
        "index": card.index,
        "score": card.score,
        "cap": caps.get(card.score or "", 0.0),
        "row_id": example.row_id,
        "direction": direction(example.texts),
        "cells": _cells(card, step, quantity, caps),
        "num_left_out": card.num_left_out,
        "summary": summary(step, example.teacher_nll),
        "grid": None,
    }


def _grid(card: Card, quantity: str, caps: Mapping[str, float]) -> dict[str, Any] | None:
    """Every step at once: a line per step, a cell per target token. It needs no script."""
    example = card.example
    texts = [text for text, is_target in zip(example.texts, example.is_target, strict=True) if is_target]
    if not texts or len(texts) * len(example.steps) > MAX_GRID_CELLS:
        return None
    lines = [
        (step.step, [_target_cell(card, step, target, text, quantity, caps) for target, text in enumerate(texts)])
        for step in example.steps
    ]
    return {"lines": lines, "quantity": QUANTITIES["score" if quantity == "score" and card.score else "student"]}


def _cells(card: Card, step: ExampleStep, quantity: str, caps: Mapping[str, float]) -> list[Cell]:
    """The tokens in order; of a long run of prompt tokens the first ones become one cell that says how many they were."""
    example = card.example
    hidden = hidden_prompts(example.is_target)
    cells, target = [], 0
    for place, (text, is_target) in enumerate(zip(example.texts, example.is_target, strict=True)):
        if is_target:
            cells.append(_target_cell(card, step, target, text, quantity, caps))
            target += 1
        elif place not in hidden:
            cells.append(Cell(pieces(text), None))
        elif place - 1 not in hidden:
            cells.append(Cell([], None, num_hidden=_run_length(hidden, place)))
    return cells


def hidden_prompts(is_target: Sequence[bool]) -> set[int]:
    """Places of prompt tokens that are not shown: all but the last MAX_PROMPT_RUN of every run."""
    hidden, until_target = set(), 0
    for place in reversed(range(len(is_target))):
        until_target = 0 if is_target[place] else until_target + 1
        if until_target > MAX_PROMPT_RUN:
            hidden.add(place)
    return hidden


def _run_length(places: set[int], start: int) -> int:
    stop = start
    while stop in places:
        stop += 1
    return stop - start


def _target_cell(card: Card, step: ExampleStep, target: int, text: str, quantity: str, caps: Mapping[str, float]) -> Cell:
    student, teacher = step.student_nll[target], card.example.teacher_nll[target]
    value = step.score[target] if quantity == "score" and card.score else student
    cap = caps[card.score] if quantity == "score" and card.score else caps["student_nll"]
    mle, distil = step.mle_weight[target], step.distil_weight[target]
    marks = " ".join(name for name, weight in (("mle", mle), ("distil", distil)) if weight > 0)
    numbers = [("score", step.score[target]), ("student", student), ("base", teacher)]
    said = [
        card.example.classes[target].replace("_", " "),
        *(f"{name} {found:.2f}" for name, found in numbers if found is not None),
    ]
    said += [{"mle distil": "learned and distilled", "mle": "learned", "distil": "distilled"}.get(marks, "neither")]
    sign = " below" if value is not None and value < 0 else ""
    return Cell(pieces(text), target, marks + sign, heat(value, cap), " · ".join(filter(None, said)))


def heat(value: float | None, cap: float) -> int:
    """Per cent of the full colour."""
    return 0 if value is None else round(100 * min(1.0, abs(value) / cap))


def summary(step: ExampleStep, teacher_nll: Sequence[float | None]) -> str:
    """The line under an example; token_pages.html.jinja says the same in JavaScript."""
    learned, distilled = (sum(weight > 0 for weight in weights) for weights in (step.mle_weight, step.distil_weight))
    said = f"{learned} of {len(step.mle_weight)} target tokens learned, {distilled} distilled"
    for name, values in (("student's", step.student_nll), ("base's", teacher_nll)):
        if known := [value for value in values if value is not None]:
            said += f"; {name} mean loss {sum(known) / len(known):.2f}"
    return said


def _embedded(card: Card, caps: Mapping[str, float]) -> dict[str, Any]:
    """What the script needs of a card; numbers with two or three decimals."""
    example = card.example
    return {
        "cap": caps[card.score] if card.score else None,
        "loss_cap": caps["student_nll"],
        "classes": example.classes,
        "teacher": _short(example.teacher_nll),
        "steps": [
            {
                "step": step.step,
                "score": _short(step.score) if card.score else None,
                "student": _short(step.student_nll),
                "mle": _short(step.mle_weight, 2),
                "distil": _short(step.distil_weight, 2),
            }
            for step in example.steps
        ],
    }


def _short(values: Sequence[float | None], digits: int = 3) -> list[float | None]:
    return [None if value is None else int(value) if value == int(value) else round(value, digits) for value in values]
