"""How far two trainings of one method land apart that differ in their seed only: below that, single runs differ by noise."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from scipy import stats


def noise_floor(methods: Mapping[str, Mapping[str, Any]], confidence: float) -> dict[str, dict[str, Any]]:
    """Metric -> spread between seeds, pooled over the methods that have several, and the reach of a rerun's difference.

    `methods` as in the comparison: name -> {"metrics": {metric: interval with `values`}}. Pooled variance: sums of squares over
    summed degrees of freedom. A rerun's difference has twice the variance of one run.
    """
    metrics = list(dict.fromkeys(metric for method in methods.values() for metric, one in method["metrics"].items() if one))
    return {metric: _floor([_values(method, metric) for method in methods.values()], confidence) for metric in metrics}


def _values(method: Mapping[str, Any], metric: str) -> list[float]:
    found = method["metrics"].get(metric)
    return list(found["values"]) if found else []


def _floor(groups: list[list[float]], confidence: float) -> dict[str, Any]:
    several = [np.asarray(group) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    seeds = max((len(group) for group in several), default=1)
    if not freedom:
        return {"between_seed_sd": None, "rerun_difference": None, "num_seeds": seeds, "num_methods": 0}
    spread = sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in several) / freedom)
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * sqrt(2) * spread
    return {"between_seed_sd": spread, "rerun_difference": reach, "num_seeds": seeds, "num_methods": len(several)}
