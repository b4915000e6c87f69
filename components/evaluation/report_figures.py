"""Figures of the report: the in-domain/OOD picture and the small curve panels, as PNG and as SVG that follows the page's theme.

A theme's SVG is drawn in stand-in colours, which `_to_inline_svg` replaces by the page's CSS variables; its text stays text
and takes the page's font. Equal input gives equal bytes: no dates, salted ids, and fonts that matplotlib brings along.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

MARKERS = "os^DvPXh"
Curve = Sequence[tuple[float, float]]
Curves = Mapping[str, Sequence[Mapping[str, float]]]
"""Model name -> its log lines."""
AXES = ("in_domain_accuracy", "ood_accuracy")
PANELS = (("nll", "Plain nll", "nats per token"), ("selected_fraction", "Selected fraction", "share of target tokens"))
MAX_CURVE_POINTS = 120


@dataclass(frozen=True)
class Palette:
    """Colours of one theme; the same method has the same colour in every figure."""

    ink: str
    muted: str
    grid: str
    surface: str
    series: tuple[str, ...]

    def of(self, index: int) -> str:
        return self.series[index % len(self.series)]


LIGHT = Palette(
    ink="#1b1f24",
    muted="#59636e",
    grid="#dfe3e8",
    surface="#ffffff",
    series=("#2563c9", "#c2410c", "#0b7d62", "#8a3fc4", "#946200", "#bd2160", "#57606a", "#3f7a1c"),
)
STAND_IN = Palette("#010101", "#010102", "#010103", "#010104", tuple(f"#01020{index}" for index in range(len(LIGHT.series))))
CSS_VARIABLES = {
    STAND_IN.ink: "var(--ink)",
    STAND_IN.muted: "var(--muted)",
    STAND_IN.grid: "var(--grid)",
    STAND_IN.surface: "var(--surface)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(STAND_IN.series)},
}


@dataclass(frozen=True)
class ParetoPoint:
    """One method: OOD accuracy is x, in-domain accuracy is y; each a dict of mean, low, high and values (one per seed).

    `index` is its place among the methods (its colour and marker).
    """

    name: str
    index: int
    x: Mapping[str, Any]
    y: Mapping[str, Any]
    is_base: bool
    is_candidate: bool

    def colour(self, palette: Palette) -> str:
        return palette.ink if self.is_base else palette.of(self.index)

    @property
    def position(self) -> tuple[float, float]:
        return float(self.x["mean"]), float(self.y["mean"])


def method_index(comparison: Mapping[str, Any], name: str) -> int:
    """Place among the methods (the base is none of them): its colour and marker everywhere."""
    return [other for other in comparison["methods"] if other != "base"].index(name) if name != "base" else -1


def pareto_points(comparison: Mapping[str, Any]) -> list[ParetoPoint]:
    """Methods that have both accuracies."""
    points = []
    for name, method in comparison["methods"].items():
        y, x = (method["metrics"].get(metric) for metric in AXES)
        if x and y:
            is_candidate = name == comparison["candidate"]["preset"]
            points.append(ParetoPoint(name, method_index(comparison, name), x, y, name == "base", is_candidate))
    return points


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


def pareto_png(points: Sequence[ParetoPoint]) -> bytes:
    """The picture for README and MLflow: light, 1,280 pixels wide."""
    buffer = io.BytesIO()
    _draw_pareto(points, LIGHT, (8.0, 5.4)).savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def pareto_svg(points: Sequence[ParetoPoint], width: int, height: int) -> str:
    """The same picture for the page, `width` x `height` CSS pixels at full size."""
    figure = _draw_pareto(points, STAND_IN, (width / 72, height / 72))
    return _to_inline_svg(figure, f"pareto-{width}", "In-domain accuracy against OOD accuracy, one point per method")


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
    _style_axes(axes, STAND_IN, label_size=10.5)
    axes.set_ylim(limits)
    for name, curve in curves.items():
        is_shown = name == highlighted
        colour = STAND_IN.of(index) if is_shown else STAND_IN.muted
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        width, alpha, order = (2.0, 1.0, 3) if is_shown else (1.0, 0.35, 2)
        axes.plot(steps, values, color=colour, lw=width, alpha=alpha, zorder=order)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    return _to_inline_svg(figure, f"{label}-{highlighted}", f"{label} of {highlighted} over {across}")


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
    _style_axes(axes, STAND_IN, label_size=10.5)
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
    return _to_inline_svg(figure, label, label)


def pareto_front(positions: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The positions that no other one equals or beats on both axes while beating it on one, by growing x."""

    def is_dominated(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in positions)

    return sorted({point for point in positions if not is_dominated(point)})


def _draw_pareto(points: Sequence[ParetoPoint], palette: Palette, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=72)
    FigureCanvasAgg(figure)
    left, bottom = 58 / (72 * size[0]), 50 / (72 * size[1])
    axes = figure.add_axes((left, bottom, 0.975 - left, 0.97 - bottom))
    methods = [point for point in points if not point.is_base]
    if not methods:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no OOD accuracy: no picture", color=palette.muted, ha="center", transform=axes.transAxes)
        return figure
    _style_axes(axes, palette, label_size=11)
    axes.set_xlabel("OOD accuracy  (right: forgot less)", color=palette.ink, fontsize=12, labelpad=8)
    axes.set_ylabel("in-domain accuracy  (up: learned more)", color=palette.ink, fontsize=12, labelpad=8)
    _set_limits(axes, points)
    _draw_base(axes, [point for point in points if point.is_base], palette)
    front = pareto_front([point.position for point in methods])
    axes.step([x for x, _ in front], [y for _, y in front], where="pre", color=palette.muted, lw=1.2, ls=(0, (4, 3)), zorder=2)
    for point in methods:
        _draw_method(axes, point, palette)
    _label_points(axes, points, front, palette)
    return figure


def _style_axes(axes: Axes, palette: Palette, label_size: float) -> None:
    axes.set_facecolor("none")
    axes.grid(color=palette.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.muted, labelsize=label_size, length=0, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(palette.grid)


def _set_limits(axes: Axes, points: Sequence[ParetoPoint]) -> None:
    """Room for all methods and their whiskers (within 0 and 1); the base joins unless it would squeeze the rest into a corner."""
    methods, base = [point for point in points if not point.is_base], [point for point in points if point.is_base]
    for name, set_limits in (("x", axes.set_xlim), ("y", axes.set_ylim)):
        values = [value for point in methods for value in _extent(getattr(point, name))]
        low, high = min(values), max(values)
        for value in (point.position["xy".index(name)] for point in base):
            wider = max(high, value) - min(low, value)
            if name == "x" or wider <= 2.2 * max(high - low, 0.02):
                low, high = min(low, value), max(high, value)
        padding = 0.07 * (high - low) or max(0.02, 0.1 * high)
        set_limits(max(low - padding, -0.6 * padding), min(high + padding, 1 + 0.6 * padding))


def _extent(interval: Mapping[str, Any]) -> list[float]:
    edges = [] if interval["low"] is None else [max(0.0, interval["low"]), min(1.0, interval["high"])]
    return [float(interval["mean"]), *map(float, interval["values"]), *edges]


def _draw_base(axes: Axes, base: Sequence[ParetoPoint], palette: Palette) -> None:
    for point in base:
        x, y = point.position
        axes.axvline(x, color=palette.muted, lw=1, ls=(0, (1, 3)), zorder=1)
        shown = _shown_position(axes, point)
        if shown == (x, y):
            axes.axhline(y, color=palette.muted, lw=1, ls=(0, (1, 3)), zorder=1)
        marker = "X" if shown == (x, y) else "v" if y < shown[1] else "^"
        axes.plot(*shown, marker=marker, ms=10, color=palette.ink, mec=palette.surface, mew=1, clip_on=False, zorder=5)


def _shown_position(axes: Axes, point: ParetoPoint) -> tuple[float, float]:
    """Where a point is drawn: in its place, or on the edge it lies beyond."""
    (x, y), (low, high) = point.position, axes.get_ylim()
    return x, min(max(y, low), high)


def _draw_method(axes: Axes, point: ParetoPoint, palette: Palette) -> None:
    colour, marker = point.colour(palette), MARKERS[point.index % len(MARKERS)]
    xs, ys = point.x["values"], point.y["values"]
    if len(xs) == len(ys):
        axes.scatter(xs, ys, marker=marker, s=20, color=colour, alpha=0.55, linewidths=0, zorder=3)
    x, y = point.position
    if point.x["low"] is not None:
        axes.plot([point.x["low"], point.x["high"]], [y, y], color=colour, lw=1.4, zorder=3)
    if point.y["low"] is not None:
        axes.plot([x, x], [point.y["low"], point.y["high"]], color=colour, lw=1.4, zorder=3)
    axes.plot(x, y, marker=marker, ms=11 if point.is_candidate else 9, color=colour, mec=palette.surface, mew=1.2, zorder=4)


def _label_points(axes: Axes, points: Sequence[ParetoPoint], front: Sequence[tuple[float, float]], palette: Palette) -> None:
    """Write each name beside its point, in the nearest free place; a thin line leads to a name that had to go farther away."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    # Pixels of now (72 dpi) to inches to pixels of whatever resolution savefig draws at.
    to_pixels = figure.dpi_scale_trans.frozen().inverted() + figure.dpi_scale_trans
    anchors = [tuple(axes.transData.transform(_shown_position(axes, point))) for point in points]
    taken = [(Bbox.from_bounds(x - 7, y - 7, 14, 14), 8.0) for x, y in anchors] + _line_boxes(axes, points, front)
    for point, (x, y) in zip(points, anchors, strict=True):
        text = axes.text(
            x, y, _label(axes, point), color=point.colour(palette), fontsize=12, transform=to_pixels, parse_math=False
        )
        text.set(ha="center", va="center", fontweight="bold" if point.is_candidate else "normal", linespacing=1.15, zorder=6)
        size = text.get_window_extent()
        box, gap = _free_place((x, y), size.width + 6, size.height + 2, taken, axes.bbox)
        text.set_position(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        taken.append((box, 20.0))
        if gap > 20 and not point.is_base:
            edge = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
            line = {"arrowstyle": "-", "color": palette.muted, "lw": 1, "ls": (0, (1, 2)), "shrinkA": 0, "shrinkB": 7}
            axes.annotate("", (x, y), edge, "figure points", "figure points", line, zorder=1)


def _label(axes: Axes, point: ParetoPoint) -> str:
    y = point.position[1]
    if point.is_base and _shown_position(axes, point) != point.position:
        return f"base: in-domain {y:.3f},\n{'below' if y < axes.get_ylim()[0] else 'above'} this picture"
    return point.name


def _line_boxes(axes: Axes, points: Sequence[ParetoPoint], front: Sequence[tuple[float, float]]) -> list[tuple[Bbox, float]]:
    """Pixels that seeds, whiskers, the front and the base's line cover, and how much a label should mind covering them."""
    spans: list[tuple[Any, Any]] = [pair for a, b in pairwise(front) for pair in ((a, (a[0], b[1])), ((a[0], b[1]), b))]
    for point in points:
        x, y = _shown_position(axes, point)
        if point.is_base:
            spans.append(((x, axes.get_ylim()[0]), (x, axes.get_ylim()[1])))
            continue
        xs, ys = _extent(point.x), _extent(point.y)
        spans += [((min(xs), y), (max(xs), y)), ((x, min(ys)), (x, max(ys)))]
        spans += [(seed, seed) for seed in zip(point.x["values"], point.y["values"], strict=False)]
    corners = [[*axes.transData.transform(start), *axes.transData.transform(end)] for start, end in spans]
    return [(Bbox([[min(a, c) - 3, min(b, d) - 3], [max(a, c) + 3, max(b, d) + 3]]), 2.5) for a, b, c, d in corners]


def _free_place(
    anchor: tuple[float, float], width: float, height: float, taken: Sequence[tuple[Bbox, float]], room: Bbox
) -> tuple[Bbox, float]:
    """The box of this size around the anchor that covers least, near ones first; also its distance from the anchor."""
    best: tuple[float, Bbox, float] | None = None
    for gap in (10, 16, 26, 40, 58, 80, 106):
        for turn in range(16):
            angle = math.pi * turn / 8
            x = anchor[0] + math.cos(angle) * (gap + width / 2)
            y = anchor[1] + math.sin(angle) * (gap + height / 2)
            box = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
            outside = width * height - _overlap(box, room)
            cost = gap * 4 + 30 * outside + sum(weight * _overlap(box, other) for other, weight in taken)
            if best is None or cost < best[0]:
                best = (cost, box, gap)
    assert best is not None
    return best[1], best[2]


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _to_inline_svg(figure: Figure, name: str, label: str) -> str:
    """SVG for an HTML page: no header, no metadata, CSS variables for colours, a label for readers, ids only where used."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub("|".join(CSS_VARIABLES), lambda match: CSS_VARIABLES[match[0]], svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip()
