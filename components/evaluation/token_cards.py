"""An example under one method as tokens.html shows it: its tokens with colour and marks, all steps at a glance, its numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.evaluation.probes import Example, ExampleStep
from components.evaluation.token_text import Piece, direction, pieces

MAX_PROMPT_RUN = 80
"""Of a longer run of prompt tokens only the last ones are shown."""
MAX_GRID_CELLS = 600
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


def shown_card(card: Card, number: int, quantity: str, caps: Mapping[str, float]) -> dict[str, Any]:
    example, step = card.example, card.example.steps[0]
    return {
        "number": number,
        "method": card.method,
        "model": card.model,
        "index": card.index,
        "score": card.score,
        "cap": caps.get(card.score or ""),
        "row_id": example.row_id,
        "direction": direction(example.texts),
        "cells": _cells(card, step, quantity, caps),
        "num_left_out": card.num_left_out,
        "summary": summary(step, example.teacher_nll),
        "grid": None,
    }


def grid(card: Card, quantity: str, caps: Mapping[str, float]) -> dict[str, Any] | None:
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
    cap = caps.get(card.score) if quantity == "score" and card.score else None
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


def heat(value: float | None, cap: float | None = None) -> int:
    """Per cent of the full colour: 1 - exp(-nats), for a loss the probability that was not given; or a share of `cap`."""
    if value is None:
        return 0
    return round(100 * (1 - math.exp(-abs(value)) if cap is None else min(1.0, abs(value) / cap)))


def summary(step: ExampleStep, teacher_nll: Sequence[float | None]) -> str:
    """The line under an example; token_pages.html.jinja says the same in JavaScript."""
    learned, distilled = (sum(weight > 0 for weight in weights) for weights in (step.mle_weight, step.distil_weight))
    said = f"{learned} of {len(step.mle_weight)} target tokens learned, {distilled} distilled"
    for name, values in (("student's", step.student_nll), ("base's", teacher_nll)):
        if known := [value for value in values if value is not None]:
            said += f"; {name} mean loss {sum(known) / len(known):.2f}"
    return said


def embedded_card(card: Card, caps: Mapping[str, float]) -> dict[str, Any]:
    """What the script needs of a card; numbers with two or three decimals."""
    example = card.example
    return {
        "cap": caps.get(card.score or ""),
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
