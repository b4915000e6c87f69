"""explorer.html: turn a threshold and see at once what a mask would keep. Seconds on a CPU, before any training.

The page holds, for each score, what about two hundred thresholds keep in every group: exact shares, rounded to .01 %.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from components.artifacts import write_csv, write_text
from components.evaluation.mask_outcomes import (
    KEEPS,
    SELECTS,
    Outcome,
    all_groupings,
    keep_threshold,
    nearest,
    outcome,
    slider_thresholds,
    table_rows,
)
from components.evaluation.mask_tokens import TokenTable
from components.evaluation.page import render_page
from components.teacher_cache.sidecar import Floats

SCORES = {"teacher_nll": "base's loss", "entropy": "base's entropy"}
HEADINGS = {"dataset": "By file", "class": "By token class", "position": "By place among the targets of its turn"}
PRESETS = {"teacher_nll": "uncertainty_aware_static", "entropy": "uncertainty_aware"}
"""A preset that a threshold on this score can be given to."""
DEFAULT_KEEP = 0.5
CHART = (420, 260)
"""Pixels of the chart's plane."""


def write_explorer(folder: Path, table: TokenTable) -> dict[str, Any]:
    """Leave explorer.html and table.csv; a summary for the log."""
    rows = table_rows(table)
    write_csv(folder / "table.csv", rows)
    write_text(folder / "explorer.html", render_explorer(table))
    halves = {
        row["score"]: row["gradient_mass_kept"]
        for row in rows
        if (row["by"], row["select"], row["keep"]) == ("all", "high", DEFAULT_KEEP)
    }
    return {
        "tokens": table.num_tokens,
        **{f"gradient_mass_in_top_half_by_{name}": round(share, 3) for name, share in halves.items()},
    }


def render_explorer(table: TokenTable) -> str:
    score = next(iter(table.scores))
    thresholds = {name: slider_thresholds(score_N) for name, score_N in table.scores.items()}
    outcomes = {(name, select): _joined(table, name, thresholds[name], select) for name in table.scores for select in SELECTS}
    shown = outcomes[score, "high"]
    place = nearest(shown.token_shares_GE[0], DEFAULT_KEEP)
    return render_page(
        "mask_explorer.html.jinja",
        num_tokens=table.num_tokens,
        scores={name: SCORES.get(name, name) for name in table.scores},
        score=score,
        place=place,
        num_thresholds=len(thresholds[score]),
        threshold=float(thresholds[score][place]),
        overall=_line(shown, 0, place),
        sections=_sections(table, shown, place),
        chart=CHART,
        curves={f"{name}-{select}": _polyline(found) for (name, select), found in outcomes.items()},
        marker=_point(shown, place),
        preset=PRESETS.get(score, "uncertainty_aware"),
        tables=[_keep_table(table, name, select) for name in table.scores for select in SELECTS],
        embedded=json.dumps(_embedded(thresholds, outcomes), separators=(",", ":")),
    )


def _joined(table: TokenTable, score: str, threshold_E: Floats, select: Any) -> Outcome:
    """The groups of all groupings one below the other: all tokens, files, classes, positions."""
    found = [outcome(table.scores[score], table.mass_N, own, threshold_E, select) for own in all_groupings(table).values()]
    fields = ("tokens_GE", "mass_GE", "num_tokens_G", "total_mass_G")
    return Outcome(*(np.concatenate([getattr(one, field) for one in found]) for field in fields))


def _sections(table: TokenTable, shown: Outcome, place: int) -> list[dict[str, Any]]:
    """A table per grouping; groups without a token are left out."""
    sections, number = [], 1
    for by, grouping in table.groupings.items():
        lines = [{"name": name, **_line(shown, number + group, place)} for group, name in enumerate(grouping.names)]
        lines = [line for line in lines if line["num_tokens"]]
        number += len(grouping.names)
        sections.append({"heading": HEADINGS.get(by, by), "by": by, "lines": lines})
    return sections


def _line(found: Outcome, group: int, place: int) -> dict[str, Any]:
    """A row of the page: `number` is its place in the embedded lists."""
    return {
        "number": group,
        "num_tokens": int(found.num_tokens_G[group]),
        "mass_share": 100 * float(found.total_mass_G[group]) / (float(found.total_mass_G[0]) or 1.0),
        "tokens_kept": 100 * float(found.token_shares_GE[group, place]),
        "mass_kept": 100 * float(found.mass_shares_GE[group, place]),
    }


def _point(found: Outcome, place: int) -> tuple[float, float]:
    """Tokens kept to the right, gradient mass kept upwards."""
    tokens, mass = found.token_shares_GE[0, place], found.mass_shares_GE[0, place]
    return round(float(CHART[0] * tokens), 1), round(float(CHART[1] * (1 - mass)), 1)


def _polyline(found: Outcome) -> str:
    points = sorted({_point(found, place) for place in range(found.tokens_GE.shape[1])}, key=lambda point: (point[0], -point[1]))
    return " ".join(f"{x:g},{y:g}" for x, y in [(0, CHART[1]), *points, (CHART[0], 0)])


def _keep_table(table: TokenTable, score: str, select: Any) -> dict[str, Any]:
    """What every `keep` would need and do, for readers without JavaScript."""
    ordered_N = np.sort(table.scores[score])
    wanted = [keep_threshold(ordered_N, keep, select) for keep in KEEPS]
    threshold_E = np.unique(wanted)
    every = all_groupings(table)
    found = {by: outcome(table.scores[score], table.mass_N, every[by], threshold_E, select) for by in ("all", "class")}
    lines = []
    for keep, threshold in zip(KEEPS, wanted, strict=True):
        place = int(np.searchsorted(threshold_E, threshold))
        classes = [100 * float(share) for share in found["class"].token_shares_GE[:, place]]
        lines.append({"keep": keep, "threshold": threshold, "classes": classes, **_line(found["all"], 0, place)})
    return {"score": score, "select": select, "classes": every["class"].names, "lines": lines}


def _embedded(thresholds: Mapping[str, Floats], outcomes: Mapping[tuple[str, Any], Outcome]) -> dict[str, Any]:
    """Shares in hundredths of a per cent."""
    return {
        name: {
            "thresholds": [float(f"{threshold:.6g}") for threshold in threshold_E],
            "preset": PRESETS.get(name, "uncertainty_aware"),
            **{
                select: {
                    "tokens": (outcomes[name, select].token_shares_GE * 1e4).round().astype(int).tolist(),
                    "mass": (outcomes[name, select].mass_shares_GE * 1e4).round().astype(int).tolist(),
                }
                for select in SELECTS
            },
        }
        for name, threshold_E in thresholds.items()
    }
