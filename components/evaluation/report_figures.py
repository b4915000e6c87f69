"""The small panels of the report: curves over steps, risk over coverage; and which colour a method has everywhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from components.evaluation.report_theme import STAND_IN, style_axes, to_inline_svg

Curve = Sequence[tuple[float, float]]
Curves = Mapping[str, Sequence[Mapping[str, float]]]
"""Model name -> its log lines."""
AXES = ("in_domain_accuracy", "ood_accuracy")
PANELS = (("nll", "Plain nll", "nats per token"), ("selected_fraction", "Selected fraction", "share of target tokens"))
MAX_CURVE_POINTS = 120


def method_index(comparison: Mapping[str, Any], name: str) -> int:
    """Place among the methods (the base is none of them): its colour and marker everywhere."""
    return [other for other in comparison["methods"] if other != "base"].index(name) if name != "base" else -1


def curve_panels(comparison: Mapping[str, Any], curves: Curves) -> list[dict[str, Any]]:
    """Per quantity one small panel per method, all on the same scale."""
    panels = []
    for column, title, unit in PANELS:
        means = {
            name: curve
            for name, method in comparison["methods"].items()
            if (curve := mean_curve([curves[model] for model in method["models"] if model in curves], column))
        }
        values = [value for curve in means.values() for _, value in curve]
        if values:
            padding = 0.06 * (max(values) - min(values)) or 0.05
            limits = (-0.04, 1.06) if column == "selected_fraction" else (min(values) - padding, max(values) + padding)
            svgs = {name: curve_svg(means, name, method_index(comparison, name), limits, title) for name in means}
            panels.append({"title": title, "unit": unit, "svgs": svgs})
    return panels


def risk_panels(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Method -> its in-domain risk-coverage curve (both in per cent), all on the same scale; the base, which answers at
    random what it was never taught, is left out."""
    curves = {
        name: [(100 * point["coverage"], 100 * point["risk"]) for point in points]
        for name, points in comparison["risk_coverage"].items()
        if points and name != "base"
    }
    highest = max((risk for curve in curves.values() for _, risk in curve), default=0.0)
    limits = (-0.04 * highest, 1.06 * highest or 1.0)
    return {
        name: curve_svg(curves, name, method_index(comparison, name), limits, "In-domain risk", "coverage") for name in curves
    }


def mean_curve(runs: Sequence[Sequence[Mapping[str, float]]], column: str) -> list[tuple[float, float]]:
    """(step, mean over the runs that logged it), long curves thinned to means of neighbouring steps."""
    by_step: dict[float, list[float]] = {}
    for line in (line for run in runs for line in run):
        if math.isfinite(line.get(column, math.nan)):
            by_step.setdefault(line["step"], []).append(line[column])
    curve = [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]
    size = math.ceil(len(curve) / MAX_CURVE_POINTS)
    groups = [curve[start : start + size] for start in range(0, len(curve), size or 1)]
    return [(sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups]


def curve_svg(
    curves: Mapping[str, Curve],
    highlighted: str,
    index: int,
    limits: tuple[float, float],
    label: str,
    across: str = "steps",
) -> str:
    """One small panel: the highlighted method's curve in its colour, the others behind it in grey."""
    figure = Figure(figsize=(250 / 72, 160 / 72), dpi=72)
    axes = figure.add_axes((0.15, 0.17, 0.81, 0.78))
    style_axes(axes, STAND_IN, label_size=10.5)
    axes.set_ylim(limits)
    for name, curve in curves.items():
        is_shown = name == highlighted
        colour = STAND_IN.of(index) if is_shown else STAND_IN.muted
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        width, alpha, order = (2.0, 1.0, 3) if is_shown else (1.0, 0.35, 2)
        axes.plot(steps, values, color=colour, lw=width, alpha=alpha, zorder=order)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    return to_inline_svg(figure, f"{label}-{highlighted}", f"{label} of {highlighted} over {across}")


@dataclass(frozen=True)
class PanelLine:
    """One curve of a small panel: `series` is its colour, `dashes` (None: solid) tells it apart without colour."""

    curve: Curve
    series: int
    dashes: tuple[float, float] | None = None


def panel_svg(lines: Sequence[PanelLine], limits: tuple[float, float], label: str, mark: float | None = None) -> str:
    """A small panel of several curves over steps; from `mark` to the end the ground is tinted, and the step is written there."""
    figure = Figure(figsize=(250 / 72, 160 / 72), dpi=72)
    axes = figure.add_axes((0.15, 0.17, 0.81, 0.78))
    style_axes(axes, STAND_IN, label_size=10.5)
    axes.set_ylim(limits)
    for line in lines:
        steps, values = [step for step, _ in line.curve], [value for _, value in line.curve]
        style: Any = "-" if line.dashes is None else (0, line.dashes)
        marker = "o" if len(steps) <= 12 else ""
        axes.plot(steps, values, color=STAND_IN.of(line.series), lw=1.8, ls=style, marker=marker, ms=3, zorder=3)
    if limits[0] < 0 < limits[1]:
        axes.axhline(0, color=STAND_IN.muted, lw=0.8, zorder=1)
    if mark is not None:
        right = axes.get_xlim()[1]
        axes.axvspan(mark, right, color=STAND_IN.of(1), alpha=0.12, lw=0, zorder=0)
        axes.axvline(mark, color=STAND_IN.of(1), lw=1, ls=(0, (2, 2)), zorder=2)
        height, side = limits[1] - 0.02 * (limits[1] - limits[0]), "right" if mark > sum(axes.get_xlim()) / 2 else "left"
        axes.text(mark, height, f" step {mark:g} ", ha=side, va="top", fontsize=10.5, color=STAND_IN.ink, zorder=4)
        axes.set_xlim(right=right)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    return to_inline_svg(figure, label, label)
