"""Intervals and paired comparisons: over seeds (Student's t) and over items x seeds (paired bootstrap).

Shapes: S seeds, I items, R resamples.

A difference is drawn again R times: items with replacement within each set, the same for every method; seeds with replacement,
each method its own. S seeds drawn from S have only (S-1)/S of the spread that S new seeds would have (a half with two), so
their deviations are stretched by sqrt(S/(S-1)). The spread of the draws is the standard error; its interval is Student's, with
the degrees of freedom of Welch and Satterthwaite: three seeds tell little about their own spread, and a percentile interval
would pretend that they tell it all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

from components.errors import ArtifactError

REPAIR = "dvc repro -f evaluate_ood evaluate_base"
Array = npt.NDArray[np.float64]
ROUNDING = 1e-12
"""Draws of two equal models differ by this much at most; their spread is none."""


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
    """One set under one method: sums_SI over counts_I tokens (or items) of each item; pairs must be of the same items."""

    item_ids: tuple[str, ...]
    sums_SI: Array
    counts_I: Array


@dataclass(frozen=True)
class Resampled:
    """One method's figure (mean of its sets): as measured, in each resample, and by seed with the items as they are."""

    value: float
    draws_R: Array
    by_seed_S: Array
    num_items: int

    @property
    def seed_variance(self) -> float:
        """Of the mean over seeds; 0 with one seed, which says nothing about others."""
        num_seeds = len(self.by_seed_S)
        return float(self.by_seed_S.var(ddof=1)) / num_seeds if num_seeds > 1 else 0.0


def resample(methods: Sequence[Mapping[str, ItemScores]], num_resamples: int, seed: int) -> list[Resampled]:
    """Draws of every method on the same items. Memory: resamples x items of the largest set."""
    _refuse_other_items(methods)
    seeds = [np.random.default_rng([seed, 1, place]) for place in range(len(methods))]
    picks = [_pick_seeds(method, generator, num_resamples) for method, generator in zip(methods, seeds, strict=True)]
    draws = [np.zeros(num_resamples) for _ in methods]
    by_seed = [np.zeros(pick.shape[1]) for pick in picks]
    for place, name in enumerate(methods[0]):
        counts_I = methods[0][name].counts_I
        generator = np.random.default_rng([seed, 0, place])
        drawn_RI = generator.multinomial(len(counts_I), np.full(len(counts_I), 1 / len(counts_I)), num_resamples).astype(float)
        total_R = drawn_RI @ counts_I
        for index, method in enumerate(methods):
            figure_RS = drawn_RI @ method[name].sums_SI.T / total_R[:, None]
            draws[index] += _mean_of_drawn_seeds(figure_RS, picks[index])
            by_seed[index] += method[name].sums_SI.sum(1) / counts_I.sum()
    num_sets = len(methods[0])
    num_items = sum(len(one.counts_I) for one in methods[0].values())
    return [
        Resampled(float(one_S.mean()) / num_sets, draws_R / num_sets, one_S / num_sets, num_items)
        for draws_R, one_S in zip(draws, by_seed, strict=True)
    ]


def _pick_seeds(method: Mapping[str, ItemScores], generator: np.random.Generator, num_resamples: int) -> npt.NDArray[np.int64]:
    num_seeds = len(next(iter(method.values())).sums_SI)
    return generator.integers(0, num_seeds, (num_resamples, num_seeds))


def _mean_of_drawn_seeds(figure_RS: Array, picked_RS: npt.NDArray[np.int64]) -> Array:
    """Mean over the drawn seeds, its distance from the mean over all stretched to the spread of new seeds."""
    mean_R: Array = figure_RS.mean(1)
    num_seeds = figure_RS.shape[1]
    if num_seeds == 1:
        return mean_R
    drawn_R = np.take_along_axis(figure_RS, picked_RS, axis=1).mean(1)
    stretched: Array = mean_R + (drawn_R - mean_R) * sqrt(num_seeds / (num_seeds - 1))
    return stretched


@dataclass(frozen=True)
class Difference:
    """Method minus reference; the p-value is two-sided. `minimum_detectable`: would have been found with the power asked for."""

    value: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    p_value: float
    minimum_detectable: float

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval that misses the truth with probability alpha."""
        half = _quantile(1 - alpha / 2, self.degrees_of_freedom) * self.standard_error if alpha > 0 else float("inf")
        return self.value - half, self.value + half


def difference(method: Resampled, reference: Resampled, *, confidence: float, power: float) -> Difference:
    value = method.value - reference.value
    error = float((method.draws_R - reference.draws_R).std(ddof=1))
    error = 0.0 if error <= ROUNDING * max(1.0, abs(method.value)) else error
    freedom = _degrees_of_freedom(method, reference, error)
    half = _quantile((1 + confidence) / 2, freedom) * error
    reach = half + _quantile(power, freedom) * error
    return Difference(value, value - half, value + half, error, freedom, _p_value(value, error, freedom, method.num_items), reach)


def paired_difference(
    method: Mapping[str, ItemScores],
    reference: Mapping[str, ItemScores],
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
    power: float = 0.8,
) -> Difference:
    """Difference of the means over sets (each set counts the same), paired by item; seeds are drawn, too."""
    return difference(*resample([method, reference], num_resamples, seed), confidence=confidence, power=power)


def _degrees_of_freedom(method: Resampled, reference: Resampled, error: float) -> float:
    """Welch and Satterthwaite over three sources: the seeds of either side, and the items, which have what seeds leave."""
    parts = [(one.seed_variance, len(one.by_seed_S) - 1) for one in (method, reference)]
    items = max(error**2 - sum(variance for variance, _ in parts), 0.0)
    parts.append((items, max(method.num_items - 1, 1)))
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / freedom for variance, freedom in parts if variance > 0)
    return total**2 / spread if spread > 0 else float(max(method.num_items - 1, 1))


def _p_value(value: float, error: float, freedom: float, num_items: int) -> float:
    """Without any spread every item says the same: as unlikely as so many equal tosses of a coin."""
    if error == 0.0:
        return 1.0 if abs(value) <= ROUNDING else max(2.0 ** (1 - num_items), 1e-300)
    return float(2 * stats.t.sf(abs(value) / error, freedom))


def _quantile(probability: float, freedom: float) -> float:
    return float(stats.t.ppf(probability, freedom))


def _refuse_other_items(methods: Sequence[Mapping[str, ItemScores]]) -> None:
    if not methods[0]:
        raise ArtifactError("no set holds a scored item, so there is nothing to compare. Give other sets (data.ood_path)")
    first = methods[0]
    for other in methods[1:]:
        for name in {**first, **other}:
            ours, theirs = first.get(name), other.get(name)
            if ours is None or theirs is None or ours.item_ids != theirs.item_ids or (ours.counts_I != theirs.counts_I).any():
                raise ArtifactError(
                    f"the two models were evaluated on different items of {name}. Evaluate both on the same sets: {REPAIR}"
                )
