"""Intervals and paired comparisons: over seeds (Student's t) and over items x seeds (paired bootstrap).

Shapes: S seeds, I items, R resamples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from components.errors import ArtifactError

REPAIR = "dvc repro -f evaluate_ood evaluate_base"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its interval; `low` and `high` are None with fewer than two values."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


def mean_interval(values: list[float], confidence: float) -> Interval:
    """Student's t interval of the mean over seeds: how far another set of seeds might land, items held fixed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None, tuple(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half, tuple(values))


@dataclass(frozen=True)
class ItemScores:
    """One set under one method: correct_SI of scored_I tokens (or items); what is paired must be of the same items."""

    item_ids: tuple[str, ...]
    correct_SI: Array
    scored_I: Array


@dataclass(frozen=True)
class Difference:
    """Method minus reference, with a bootstrap interval; a tie when the interval contains zero."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "better" if self.low > 0 else "worse" if self.high < 0 else "tie"


def paired_difference(
    method: dict[str, ItemScores], reference: dict[str, ItemScores], *, num_resamples: int, confidence: float, seed: int
) -> Difference:
    """Difference of the mean accuracy over sets (each set counts the same), paired by item; seeds are resampled too.

    Items are drawn with replacement within each set, the same for both sides; each side draws its seeds on its own.
    """
    _refuse_other_items(method, reference)
    if not method:
        raise ArtifactError("no set has a scored item, so methods cannot be compared; add held-out sets (data.ood_path)")
    generator = np.random.default_rng(seed)
    draws_R = np.zeros(num_resamples)
    point = 0.0
    for name, ours in method.items():
        theirs = reference[name]
        point += _accuracy(ours) - _accuracy(theirs)
        items_RI = generator.integers(0, len(ours.scored_I), (num_resamples, len(ours.scored_I)))
        draws_R += _resampled(ours, items_RI, generator) - _resampled(theirs, items_RI, generator)
    low, high = np.quantile(draws_R / len(method), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(point / len(method), float(low), float(high))


def _refuse_other_items(method: dict[str, ItemScores], reference: dict[str, ItemScores]) -> None:
    if not method:
        raise ArtifactError("no set holds a scored item, so there is nothing to compare. Give other sets (data.ood_path)")
    for name in {**method, **reference}:
        ours, theirs = method.get(name), reference.get(name)
        if ours is None or theirs is None or ours.item_ids != theirs.item_ids or (ours.scored_I != theirs.scored_I).any():
            raise ArtifactError(
                f"the two models were evaluated on different items of {name}. Evaluate both on the same sets: {REPAIR}"
            )


def _accuracy(scores: ItemScores) -> float:
    return float(scores.correct_SI.sum() / (scores.scored_I.sum() * len(scores.correct_SI)))


def _resampled(scores: ItemScores, items_RI: npt.NDArray[np.int64], generator: np.random.Generator) -> Array:
    num_seeds = len(scores.correct_SI)
    seeds_RS = generator.integers(0, num_seeds, (len(items_RI), num_seeds))
    weight_RS = np.stack([(seeds_RS == seed).sum(1) for seed in range(num_seeds)], axis=1) / num_seeds
    mean_RI = np.stack([scores.correct_SI[seed][items_RI].sum(1) for seed in range(num_seeds)], axis=1)
    totals: Array = (weight_RS * mean_RI).sum(1) / scores.scored_I[items_RI].sum(1)
    return totals
