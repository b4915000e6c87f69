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
    Select,
    Study,
    nearest,
    study,
    table_rows,
)
from components.evaluation.mask_tokens import TokenTable
from components.evaluation.page import render_page

SCORES = {"teacher_nll": "base's loss", "entropy": "base's entropy"}
HEADINGS = {"dataset": "By file", "class": "By token class", "position": "By place among the targets of its turn"}
PRESETS = {"teacher_nll": "uncertainty_aware_static", "entropy": "uncertainty_aware"}
"""A preset that a threshold on this score can be given to."""
DEFAULT_KEEP = 0.5
CHART = (420, 260)
"""Pixels of the chart's plane."""


def write_explorer(folder: Path, table: TokenTable) -> dict[str, Any]:
    """Leave explorer.html and table.csv; a summary for the log."""
    studies = {score: study(table, score) for score in table.scores}
    rows = table_rows(table, studies)
    write_csv(folder / "table.csv", rows)
    write_text(folder / "explorer.html", render_explorer(table, studies))
    halves = {
        row["score"]: row["gradient_mass_kept"]
        for row in rows
        if (row["by"], row["select"], row["keep"]) == ("all", "high", DEFAULT_KEEP)
    }
    return {
        "tokens": table.num_tokens,
        **{f"gradient_mass_in_top_half_by_{name}": round(share, 3) for name, share in halves.items()},
    }


def render_explorer(table: TokenTable, studies: Mapping[str, Study]) -> str:
    score = next(iter(studies))
    outcomes = {(name, select): _joined(found, select) for name, found in studies.items() for select in SELECTS}
    shown = outcomes[score, "high"]
    place = nearest(shown.token_shares_GE[0], DEFAULT_KEEP)
    return render_page(
        "mask_explorer.html.jinja",
        num_tokens=table.num_tokens,
        scores={name: SCORES.get(name, name) for name in studies},
        score=score,
        place=place,
        num_thresholds=len(studies[score].threshold_E),
        threshold=float(studies[score].threshold_E[place]),
        overall=_line(shown, 0, place),
        sections=_sections(table, shown, place),
        chart=CHART,
        curves={f"{name}-{select}": _polyline(found) for (name, select), found in outcomes.items()},
        marker=_point(shown, place),
        preset=PRESETS.get(score, "uncertainty_aware"),
        tables=[_keep_table(table, name, found, select) for name, found in studies.items() for select in SELECTS],
        embedded=json.dumps(_embedded(studies, outcomes), separators=(",", ":")),
    )


def _joined(found: Study, select: Select) -> Outcome:
    """The groups of all groupings one below the other: all tokens, files, classes, positions."""
    fields = ("tokens_GE", "mass_GE", "num_tokens_G", "total_mass_G")
    return Outcome(*(np.concatenate([getattr(one, field) for one in found.outcomes[select].values()]) for field in fields))


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


def _keep_table(table: TokenTable, score: str, found: Study, select: Select) -> dict[str, Any]:
    """What every `keep` would need and do, for readers without JavaScript."""
    own, lines = found.outcomes[select], []
    for keep, threshold in zip(KEEPS, found.keep_thresholds[select], strict=True):
        place = found.place(threshold)
        classes = [100 * float(share) for share in own["class"].token_shares_GE[:, place]]
        lines.append({"keep": keep, "threshold": threshold, "classes": classes, **_line(own["all"], 0, place)})
    return {"score": score, "select": select, "classes": table.groupings["class"].names, "lines": lines}


def _embedded(studies: Mapping[str, Study], outcomes: Mapping[tuple[str, Select], Outcome]) -> dict[str, Any]:
    """Shares in hundredths of a per cent."""
    return {
        name: {
            "thresholds": [float(f"{threshold:.6g}") for threshold in found.threshold_E],
            "preset": PRESETS.get(name, "uncertainty_aware"),
            **{
                select: {
                    "tokens": (outcomes[name, select].token_shares_GE * 1e4).round().astype(int).tolist(),
                    "mass": (outcomes[name, select].mass_shares_GE * 1e4).round().astype(int).tolist(),
                }
                for select in SELECTS
            },
        }
        for name, found in studies.items()
    }
