"""Many differences tested at once: Holm's step-down correction, and intervals that agree with its verdicts."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from components.evaluation.statistics import Difference

Correction = Literal["holm", "none"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: below alpha exactly for what Holm (1979) rejects at that family-wise error."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def judged(
    differences: Sequence[Difference], *, confidence: float, higher_is_better: bool, correction: Correction
) -> list[dict[str, Any]]:
    """One family: each difference with adjusted p-value, interval and verdict (better, worse or tie).

    The adjusted interval is the one at the level that Holm has left for this difference, so it holds zero exactly when the
    verdict is a tie.
    """
    raw = [one.p_value for one in differences]
    adjusted = holm(raw) if correction == "holm" else raw
    alpha = 1 - confidence
    found = []
    for one, p_value in zip(differences, adjusted, strict=True):
        low, high = one.interval(alpha * (one.p_value / p_value))
        found.append(
            {
                "value": one.value,
                "low": one.low,
                "high": one.high,
                "p_value": one.p_value,
                "adjusted_p_value": p_value,
                "adjusted_low": low,
                "adjusted_high": high,
                "minimum_detectable": one.minimum_detectable,
                "verdict": _verdict(one.value, p_value < alpha, higher_is_better),
            }
        )
    return found


def _verdict(value: float, is_told_from_chance: bool, higher_is_better: bool) -> str:
    if not is_told_from_chance:
        return "tie"
    return "better" if (value > 0) == higher_is_better else "worse"
