"""What each threshold on each score would keep: tokens and expected gradient mass, overall and by group. Exact, not sampled.

Shapes: N target tokens, E thresholds, G groups.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from components.evaluation.mask_tokens import Grouping, TokenTable
from components.teacher_cache.sidecar import Floats

Select = Literal["high", "low"]
Spans = npt.NDArray[np.int64]
"""Number of thresholds that lie below a score (or at it, for the high end), [N]."""
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

    @cached_property
    def token_shares_GE(self) -> Floats:
        return _shares(self.tokens_GE, self.num_tokens_G)

    @cached_property
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


@dataclass(frozen=True)
class Study:
    """One score: ascending thresholds, [E], what `keep` needs of them, and for both ends what each keeps by each grouping."""

    threshold_E: Floats
    keep_thresholds: dict[Select, list[float]]
    nats: list[float]
    outcomes: dict[Select, dict[str, Outcome]]

    def place(self, threshold: float) -> int:
        return int(np.searchsorted(self.threshold_E, threshold))


def study(table: TokenTable, score: str) -> Study:
    """Thresholds at every half per cent of the tokens, those of KEEPS at both ends, and the absolute ones among the scores."""
    score_N = table.scores[score]
    ordered_N = np.sort(score_N)
    keeps: dict[Select, list[float]] = {select: [keep_threshold(ordered_N, keep, select) for keep in KEEPS] for select in SELECTS}
    nats = [one for one in NATS if ordered_N[0] < one < ordered_N[-1]]
    fine = [keep_threshold(ordered_N, keep, "high") for keep in FINE_KEEPS]
    threshold_E = np.unique([*fine, *keeps["high"], *keeps["low"], *nats])
    outcomes: dict[Select, dict[str, Outcome]] = {}
    for select in SELECTS:
        span_N = np.searchsorted(threshold_E, score_N, side="right" if select == "high" else "left")
        outcomes[select] = {
            by: outcome(span_N, table.mass_N, own, len(threshold_E), select) for by, own in all_groupings(table).items()
        }
    return Study(threshold_E, keeps, nats, outcomes)


def outcome(span_N: Spans, mass_N: Floats, grouping: Grouping, num_thresholds: int, select: Select) -> Outcome:
    """Every threshold at once: one histogram per group over the spans between thresholds, summed from one end."""
    num_groups, num_spans = len(grouping.names), num_thresholds + 1
    cell_N = grouping.index_N * num_spans + span_N

    def kept(weight_N: Floats | None) -> tuple[Floats, Floats]:
        sums_GE = np.bincount(cell_N, weight_N, num_groups * num_spans).reshape(num_groups, num_spans).cumsum(1).astype(float)
        total_G = sums_GE[:, -1]
        return (total_G[:, None] - sums_GE if select == "high" else sums_GE)[:, :-1], total_G

    (tokens_GE, num_tokens_G), (mass_GE, total_mass_G) = kept(None), kept(mass_N)
    return Outcome(tokens_GE, mass_GE, num_tokens_G, total_mass_G)


def all_groupings(table: TokenTable) -> dict[str, Grouping]:
    return {"all": Grouping(("all tokens",), np.zeros(table.num_tokens, dtype=np.int64)), **table.groupings}


def table_rows(table: TokenTable, studies: Mapping[str, Study]) -> list[dict[str, Any]]:
    """table.csv: score x high/low x threshold x group, shares between 0 and 1."""
    names = {by: grouping.names for by, grouping in all_groupings(table).items()}
    return [row for score, found in studies.items() for select in SELECTS for row in _rows_of(score, found, select, names)]


def _rows_of(score: str, found: Study, select: Select, names: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    wanted: list[tuple[str, float | None, float]] = [
        *(("keep", keep, threshold) for keep, threshold in zip(KEEPS, found.keep_thresholds[select], strict=True)),
        *(("threshold_nats", None, nats) for nats in found.nats),
    ]
    for rule, keep, threshold in wanted:
        for by, own in found.outcomes[select].items():
            for group, name in enumerate(names[by]):
                place = group, found.place(threshold)
                yield {
                    "score": score,
                    "select": select,
                    "rule": rule,
                    "keep": keep,
                    "threshold_nats": threshold,
                    "by": by,
                    "group": name,
                    "num_tokens": int(own.num_tokens_G[group]),
                    "tokens_kept": round(float(own.token_shares_GE[place]), 6),
                    "gradient_mass": round(float(own.total_mass_G[group]), 4),
                    "gradient_mass_kept": round(float(own.mass_shares_GE[place]), 6),
                }


def nearest(shares_E: Floats | Sequence[float], wanted: float) -> int:
    return int(np.abs(np.asarray(shares_E) - wanted).argmin())
