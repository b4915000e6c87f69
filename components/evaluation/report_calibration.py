"""Reliability diagrams: how often a model is right where it says how sure it is, in-domain and on the OOD sets, with counts."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.report_figures import method_index

SCOPES = {"in_domain": "in-domain", "ood": "OOD"}
LEFT, RIGHT, TOP, BOTTOM = 34.0, 252.0, 8.0, 196.0
"""The square of the diagram, in its own units."""
STRIP_TOP, STRIP_BOTTOM = 218.0, 250.0
"""The strip of counts under it."""


def calibration_panels(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A diagram per method that has bins."""
    panels = []
    for method, scopes in (comparison.get("reliability") or {}).items():
        bins = {scope: filled_bins(scopes.get(scope) or []) for scope in SCOPES}
        if method in comparison["methods"] and any(bins.values()):
            totals = {SCOPES[scope]: sum(one["num"] for one in found) for scope, found in bins.items() if found}
            panels.append({"method": method, "svg": _svg(method, method_index(comparison, method), bins), "totals": totals})
    return panels


def reliability_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table for DVC's plot: a row per bin that holds anything."""
    return [
        {"method": method, "scope": scope, **one}
        for method, scopes in (comparison.get("reliability") or {}).items()
        for scope in SCOPES
        for one in filled_bins(scopes.get(scope) or [])
    ]


def filled_bins(bins: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bins that hold something, with the names of the comparison whatever the evaluation called them."""
    found = []
    for one in bins:
        num = one.get("num", one.get("num_tokens", 0))
        if num and one["confidence"] is not None and one["accuracy"] is not None:
            low, high = one.get("low", one.get("lower")), one.get("high", one.get("upper"))
            found.append({"low": low, "high": high, "confidence": one["confidence"], "accuracy": one["accuracy"], "num": num})
    return found


def _svg(method: str, index: int, bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    colour = "var(--ink)" if index < 0 else f"var(--series-{index % 8})"
    label = html.escape(f"Reliability of {method}: how often it is right against how sure it is")
    parts = [f'<svg viewBox="0 0 260 256" role="img" aria-label="{label}">', *_frame()]
    for scope, found in bins.items():
        parts += _curve(found, colour, SCOPES[scope], is_filled=scope == "in_domain")
        parts += _counts(found, colour, is_filled=scope == "in_domain")
    return "".join([*parts, "</svg>"])


def _x(share: float) -> float:
    return round(LEFT + share * (RIGHT - LEFT), 1)


def _y(share: float) -> float:
    return round(BOTTOM - share * (BOTTOM - TOP), 1)


def _frame() -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        x, y = _x(share), _y(share)
        parts.append(f'<path d="M{LEFT} {y}H{RIGHT}M{x} {TOP}V{BOTTOM}" stroke="var(--grid)" fill="none"/>')
        parts += [_label(LEFT - 6, y + 4, "end", share), _label(x, BOTTOM + 14, "middle", share)]
    diagonal = f"M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"
    return [*parts, f'<path d="{diagonal}" stroke="var(--muted)" stroke-dasharray="4 4" fill="none"/>']


def _label(x: float, y: float, anchor: str, share: float) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11" fill="var(--muted)">{share:g}</text>'


def _curve(bins: Sequence[Mapping[str, Any]], colour: str, scope: str, *, is_filled: bool) -> list[str]:
    if not bins:
        return []
    points = [(_x(one["confidence"]), _y(one["accuracy"])) for one in bins]
    dashes = "" if is_filled else ' stroke-dasharray="5 3"'
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    parts = [f'<path d="{path}" stroke="{colour}" stroke-width="1.6" fill="none"{dashes}/>']
    fill = colour if is_filled else "var(--surface)"
    look, most = f'fill="{fill}" stroke="{colour}" stroke-width="1.5"', max(one["num"] for one in bins)
    for (x, y), one in zip(points, bins, strict=True):
        said = f"{scope}: {one['num']:,} answers, {one['confidence']:.3f} sure, {one['accuracy']:.3f} right"
        radius = round(1.4 + 3.6 * math.sqrt(one["num"] / most), 1)  # the area tells how many
        parts.append(f'<circle cx="{x}" cy="{y}" r="{radius}" {look}><title>{said}</title></circle>')
    return parts


def _counts(bins: Sequence[Mapping[str, Any]], colour: str, *, is_filled: bool) -> list[str]:
    """Where a scope's answers lie: a bar per bin, in-domain upwards from the middle of the strip, OOD downwards."""
    total, middle = sum(one["num"] for one in bins), (STRIP_TOP + STRIP_BOTTOM) / 2
    parts = [f'<path d="M{LEFT} {middle}H{RIGHT}" stroke="var(--grid)"/>'] if is_filled else []
    for one in bins:
        size = round((STRIP_BOTTOM - middle) * one["num"] / total, 1)
        x, width = _x(one["low"]) + 0.5, round(_x(one["high"]) - _x(one["low"]) - 1, 1)
        y, look = (middle - size, f'fill="{colour}"') if is_filled else (middle, f'fill="none" stroke="{colour}"')
        parts.append(f'<rect x="{x}" y="{round(y, 1)}" width="{width}" height="{size}" {look}/>')
    return parts
