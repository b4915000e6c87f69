"""Which differences are tested: every pair of methods in each headline figure, and every method against the base on each set."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.headline import METRICS, set_names
from components.evaluation.multiplicity import judged
from components.evaluation.paired_items import FIGURES, Figure, item_scores
from components.evaluation.statistics import Difference, Resampled, difference, resample
from components.params import ComparisonParams

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
PAIRED: dict[str, Figure] = {
    "in_domain_accuracy": "accuracy",
    "ood_accuracy": "accuracy",
    "in_domain_exact_match": "exact_match",
    "ood_exact_match": "exact_match",
    "in_domain_nll": "nll",
    "ood_nll": "nll",
    "base_text_nll": "nll",
}
"""Headline figures that are sums over items, so that they can be paired."""


def method_differences(by_preset: Runs, params: ComparisonParams) -> list[dict[str, Any]]:
    """Every method against the base and against every method listed before it. A family: all pairs in one metric."""
    presets = list(by_preset)
    pairs = [(method, reference) for index, method in enumerate(presets) for reference in presets[:index]]
    first = by_preset[presets[0]][0]
    found = []
    for metric, figure in PAIRED.items():
        drawn = _resampled(by_preset, set_names(first, metric), figure, params)
        if not drawn:
            continue
        tested = [_difference(drawn[method], drawn[reference], params) for method, reference in pairs]
        told = judged(
            tested,
            confidence=params.confidence,
            higher_is_better=METRICS[metric]["higher_is_better"],
            correction=params.correction,
        )
        found += [
            {"metric": metric, "method": method, "reference": reference, "family": metric, **one}
            for (method, reference), one in zip(pairs, told, strict=True)
        ]
    return found


def set_differences(by_preset: Runs, params: ComparisonParams) -> list[dict[str, Any]]:
    """Every method against the base on every set. A family: all sets and methods in one metric."""
    found = []
    for figure in FIGURES:
        places, tested = [], []
        for name in by_preset["base"][0]["sets"]:
            drawn = _resampled(by_preset, [name], figure, params) if name != "validation" else {}
            for method in [method for method in drawn if method != "base"]:
                places.append((name, method))
                tested.append(_difference(drawn[method], drawn["base"], params))
        is_higher_better = figure != "nll"
        told = judged(tested, confidence=params.confidence, higher_is_better=is_higher_better, correction=params.correction)
        found += [
            {"set": name, "metric": figure, "method": method, "reference": "base", "family": f"sets by {figure}", **one}
            for (name, method), one in zip(places, told, strict=True)
        ]
    return found


def _resampled(by_preset: Runs, names: Sequence[str], figure: Figure, params: ComparisonParams) -> dict[str, Resampled]:
    """Draws of every method; empty where no set has such a figure."""
    scores = [item_scores(runs, names, figure) for runs in by_preset.values()]
    if not any(scores):
        return {}
    return dict(zip(by_preset, resample(scores, params.num_resamples, params.seed), strict=True))


def _difference(method: Resampled, reference: Resampled, params: ComparisonParams) -> Difference:
    return difference(method, reference, confidence=params.confidence, power=params.power)
