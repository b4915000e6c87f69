"""Histograms of the report, drawn by hand as SVG in the page's colours: a small panel for each part of the rows, on one scale.

Heights are shares of the part's own rows, so that few rows can be compared with many. Equal input gives equal bytes.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 250.0, 172.0
LEFT, RIGHT, TOP, BOTTOM = 36.0, 8.0, 18.0, 36.0
GAP = 1.0
MAX_TICKS = 5


def histogram_panels(
    edges: Sequence[int], counts: Mapping[str, Sequence[int]], medians: Mapping[str, int | None], unit: str
) -> dict[str, str]:
    """Part -> its panel, all with the same axes; `medians` are marked. A part without rows has no panel."""
    shares = {name: [count / sum(of_part) for count in of_part] for name, of_part in counts.items() if sum(of_part)}
    highest = max((max(of_part) for of_part in shares.values()), default=0.0)
    return {name: _panel(name, edges, of_part, medians.get(name), highest, unit) for name, of_part in shares.items()}


def bin_rows(edges: Sequence[int], counts: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """The same as a table: a line for every bin that holds a row."""
    lines = [
        {"name": bin_name(edges, place), "counts": {name: of_part[place] for name, of_part in counts.items()}}
        for place in range(len(edges) - 1)
    ]
    return [line for line in lines if any(line["counts"].values())]


def bin_name(edges: Sequence[int], place: int) -> str:
    low, high = edges[place], edges[place + 1] - 1
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def tick_step(reach: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that makes at most so many steps."""
    step = 10.0**-6
    while True:
        for times in (1, 2, 5):
            if reach <= most * times * step * (1 + 1e-9):
                return times * step
        step *= 10


def _panel(name: str, edges: Sequence[int], shares: Sequence[float], median: int | None, highest: float, unit: str) -> str:
    label = f"Histogram of {unit} per {name} row: {spoken(edges, shares, median)}"
    parts = [
        f'<svg class="histogram" role="img" aria-label="{html.escape(label)}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}">',
        *_height_axis(highest),
        *_bars(edges, shares, highest),
        *_length_axis(edges, unit),
        *([] if median is None else _median(edges, median)),
        "</svg>",
    ]
    return "".join(parts)


def spoken(edges: Sequence[int], shares: Sequence[float], median: int | None) -> str:
    """The picture in a sentence, for who cannot see it."""
    fullest = max(range(len(shares)), key=lambda place: shares[place])
    middle = "" if median is None else f"median {median:,}; "
    return f"{middle}most often {bin_name(edges, fullest)} ({100 * shares[fullest]:.0f} % of the rows)"


def _x(edges: Sequence[int], length: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * length / edges[-1]


def _y(share: float, highest: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share / highest


def _bars(edges: Sequence[int], shares: Sequence[float], highest: float) -> Iterator[str]:
    """A bar that holds anything is at least a hair high: one row among a million is there to be seen."""
    for place, share in enumerate(shares):
        if share:
            left, right = _x(edges, edges[place]), _x(edges, edges[place + 1])
            top = min(_y(share, highest), HEIGHT - BOTTOM - 1)
            yield (
                f'<rect class="column" x="{left + GAP / 2:.1f}" y="{top:.1f}" width="{max(right - left - GAP, 0.6):.1f}"'
                f' height="{HEIGHT - BOTTOM - top:.1f}"/>'
            )


def _height_axis(highest: float) -> Iterator[str]:
    step = tick_step(100 * highest, 4)
    for number in range(int(100 * highest / step + 1e-9) + 1):
        y = _y(number * step / 100, highest)
        yield f'<line class="rule" x1="{LEFT:g}" y1="{y:.1f}" x2="{WIDTH - RIGHT:g}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 5:g}" y="{y + 3.5:.1f}" text-anchor="end">{number * step:g} %</text>'


def _length_axis(edges: Sequence[int], unit: str) -> Iterator[str]:
    step = max(1, round(tick_step(edges[-1], MAX_TICKS)))
    for tick in range(0, edges[-1] + 1, step):
        anchor = "middle" if _x(edges, tick) < WIDTH - RIGHT - 14 else "end"
        x = _x(edges, tick) if anchor == "middle" else WIDTH - 1
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14:g}" text-anchor="{anchor}">{_short(tick)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle:g}" y="{HEIGHT - 4:g}" text-anchor="middle">{html.escape(unit)}</text>'


def _short(number: int) -> str:
    """2,000 and 2,500, but 20k."""
    return f"{number // 1000}k" if number >= 10_000 and number % 1000 == 0 else f"{number:,}"


def _median(edges: Sequence[int], median: int) -> Iterator[str]:
    x = _x(edges, median + 0.5)
    anchor, shift = ("start", 4) if x < LEFT + (WIDTH - LEFT) / 2 else ("end", -4)
    yield f'<line class="middle" x1="{x:.1f}" y1="{TOP - 12:g}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM:g}"/>'
    yield f'<text class="middle" x="{x + shift:.1f}" y="{TOP - 5:g}" text-anchor="{anchor}">median {median:,}</text>'
