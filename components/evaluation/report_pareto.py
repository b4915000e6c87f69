"""The in-domain/OOD picture with its intervals: as PNG for README, MLflow and DVC, as SVG for the page."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from components.evaluation.report_figures import AXES, method_index
from components.evaluation.report_theme import LIGHT, STAND_IN, Palette, style_axes, to_inline_svg

MARKERS = "os^DvPXh"


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


def pareto_points(comparison: Mapping[str, Any]) -> list[ParetoPoint]:
    """Methods that have both accuracies."""
    points = []
    for name, method in comparison["methods"].items():
        y, x = (method["metrics"].get(metric) for metric in AXES)
        if x and y:
            is_candidate = name == comparison["candidate"]["preset"]
            points.append(ParetoPoint(name, method_index(comparison, name), x, y, name == "base", is_candidate))
    return points


def pareto_png(points: Sequence[ParetoPoint]) -> bytes:
    """The picture for README and MLflow: light, 1,280 pixels wide."""
    buffer = io.BytesIO()
    _draw_pareto(points, LIGHT, (8.0, 5.4)).savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def pareto_svg(points: Sequence[ParetoPoint], width: int, height: int) -> str:
    """The same picture for the page, `width` x `height` CSS pixels at full size."""
    figure = _draw_pareto(points, STAND_IN, (width / 72, height / 72))
    return to_inline_svg(figure, f"pareto-{width}", "In-domain accuracy against OOD accuracy, one point per method")


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
    style_axes(axes, palette, label_size=11)
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
