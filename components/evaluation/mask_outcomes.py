"""What each threshold on each score would keep: tokens and expected gradient mass, overall and by group. Exact, not sampled.

Shapes: N target tokens, E thresholds, G groups.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from components.evaluation.mask_tokens import Grouping, TokenTable
from components.teacher_cache.sidecar import Floats

Select = Literal["high", "low"]
SELECTS: tuple[Select, ...] = ("high", "low")
KEEPS = tuple(round(0.05 * step, 2) for step in range(1, 20))
FINE_KEEPS = tuple(round(0.005 * step, 3) for step in range(1, 200))
NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, round(math.log(2), 4), round(math.log(2.5), 4), 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
"""Absolute thresholds of the table, among them a probability of one half and the perplexity of preset `stm`."""


@dataclass(frozen=True)
class Outcome:
    """Per group and threshold, [G, E]: tokens kept and gradient mass kept; per group, [G]: how much there is."""

    tokens_GE: Floats
    mass_GE: Floats
    num_tokens_G: Floats
    total_mass_G: Floats

    @property
    def token_shares_GE(self) -> Floats:
        return _shares(self.tokens_GE, self.num_tokens_G)

    @property
    def mass_shares_GE(self) -> Floats:
        return _shares(self.mass_GE, self.total_mass_G)


def _shares(kept_GE: Floats, total_G: Floats) -> Floats:
    """Of an empty group nothing is kept."""
    shares_GE: Floats = kept_GE / np.where(total_G > 0, total_G, 1)[:, None]
    return shares_GE.clip(0, 1)


def keep_threshold(ordered_N: Floats, keep: float, select: Select) -> float:
    """As components.uncertainty.selection.quantile_threshold, for scores that are sorted already (ascending)."""
    num_kept = max(1, round(keep * len(ordered_N)))
    first = len(ordered_N) - num_kept if select == "high" else num_kept - 1
    beyond = first - 1 if select == "high" else first + 1
    both = [ordered_N[place] for place in (first, beyond) if 0 <= place < len(ordered_N)]
    return float(np.mean(both))


def slider_thresholds(score_N: Floats) -> Floats:
    """One per half per cent of the tokens, and the absolute ones that lie among the scores; ascending, [E]."""
    ordered_N = np.sort(score_N)
    inside = [nats for nats in NATS if ordered_N[0] < nats < ordered_N[-1]]
    return np.unique([*(keep_threshold(ordered_N, keep, "high") for keep in FINE_KEEPS), *inside])


def outcome(score_N: Floats, mass_N: Floats, grouping: Grouping, threshold_E: Floats, select: Select) -> Outcome:
    """Every ascending threshold at once: one histogram per group over the spans between thresholds, summed from the kept end."""
    num_groups, num_spans = len(grouping.names), len(threshold_E) + 1
    span_N = np.searchsorted(threshold_E, score_N, side="right" if select == "high" else "left")
    cell_N = grouping.index_N * num_spans + span_N

    def kept(weight_N: Floats | None) -> tuple[Floats, Floats]:
        sums_GE = np.bincount(cell_N, weight_N, num_groups * num_spans).reshape(num_groups, num_spans).cumsum(1).astype(float)
        total_G = sums_GE[:, -1]
        return (total_G[:, None] - sums_GE if select == "high" else sums_GE)[:, :-1], total_G

    (tokens_GE, num_tokens_G), (mass_GE, total_mass_G) = kept(None), kept(mass_N)
    return Outcome(tokens_GE, mass_GE, num_tokens_G, total_mass_G)


def all_groupings(table: TokenTable) -> dict[str, Grouping]:
    return {"all": Grouping(("all tokens",), np.zeros(table.num_tokens, dtype=np.int64)), **table.groupings}


def table_rows(table: TokenTable) -> list[dict[str, Any]]:
    """table.csv: score x high/low x threshold x group, shares between 0 and 1."""
    return [row for score in table.scores for select in SELECTS for row in _rows_of(table, score, select)]


def _rows_of(table: TokenTable, score: str, select: Select) -> Iterator[dict[str, Any]]:
    ordered_N = np.sort(table.scores[score])
    wanted: list[tuple[str, float | None, float]] = [("keep", keep, keep_threshold(ordered_N, keep, select)) for keep in KEEPS]
    wanted += [("threshold_nats", None, nats) for nats in NATS if ordered_N[0] < nats < ordered_N[-1]]
    threshold_E = np.unique([threshold for _, _, threshold in wanted])
    outcomes = {
        by: outcome(table.scores[score], table.mass_N, grouping, threshold_E, select)
        for by, grouping in all_groupings(table).items()
    }
    for rule, keep, threshold in wanted:
        place = int(np.searchsorted(threshold_E, threshold))
        for by, grouping in all_groupings(table).items():
            for group, name in enumerate(grouping.names):
                found = outcomes[by]
                yield {
                    "score": score,
                    "select": select,
                    "rule": rule,
                    "keep": keep,
                    "threshold_nats": threshold,
                    "by": by,
                    "group": name,
                    "num_tokens": int(found.num_tokens_G[group]),
                    "tokens_kept": round(float(found.token_shares_GE[group, place]), 6),
                    "gradient_mass": round(float(found.total_mass_G[group]), 4),
                    "gradient_mass_kept": round(float(found.mass_shares_GE[group, place]), 6),
                }


def nearest(shares_E: Floats | Sequence[float], wanted: float) -> int:
    return int(np.abs(np.asarray(shares_E) - wanted).argmin())
