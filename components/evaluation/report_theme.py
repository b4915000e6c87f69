"""What all figures of the report share: the colours of a theme, the style of axes, and SVG that follows the page's theme.

A theme's SVG is drawn in stand-in colours, which `to_inline_svg` replaces by the page's CSS variables; its text stays text
and takes the page's font. Equal input gives equal bytes: no dates, salted ids, and fonts that matplotlib brings along.
"""

import html
import io
import re
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure


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


def style_axes(axes: Axes, palette: Palette, label_size: float) -> None:
    axes.set_facecolor("none")
    axes.grid(color=palette.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.muted, labelsize=label_size, length=0, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(palette.grid)


def to_inline_svg(figure: Figure, name: str, label: str) -> str:
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
