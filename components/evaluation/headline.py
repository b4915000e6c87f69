"""The headline figures of one model, and which sets each is made of.

A figure over OOD sets is the mean of the sets (each counts the same); sets without such a figure are left out of it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

OOD_PREFIX = "ood/"
BASE_TEXT = "base_text"
SET_METRICS = ("accuracy", "nll", "ece", "brier", "aurc", "drift_kl", "exact_match", "prompt_drift_kl")
SCOPES = ("in_domain", "ood")
_UNITS: dict[str, tuple[str, bool]] = {
    "accuracy": ("share", True),
    "exact_match": ("share", True),
    "nll": ("nats/token", False),
    "ece": ("share", False),
    "brier": ("0 to 2", False),
    "aurc": ("share", False),
    "drift_kl": ("nats/token", False),
    "prompt_drift_kl": ("nats/token", False),
}


def _describe(unit: str, higher_is_better: bool) -> dict[str, Any]:
    return {"unit": unit, "higher_is_better": higher_is_better}


METRICS: dict[str, dict[str, Any]] = {
    **{f"{scope}_{metric}": _describe(*_UNITS[metric]) for scope in SCOPES for metric in _UNITS},
    "base_text_nll": _describe("nats/token", False),
    "nll_tracks_epistemic": _describe("Spearman", True),
    "nll_tracks_aleatoric": _describe("Spearman", False),
}


def model_metrics(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """The headline figures of one model (see METRICS); None where a figure does not exist for this data."""
    sets = evaluation["sets"]
    ood = [result for name, result in sets.items() if name.startswith(OOD_PREFIX)]
    figures: dict[str, float | None] = {}
    for metric in _UNITS:
        figures[f"in_domain_{metric}"] = set_figure(sets["in_domain"], metric)
        present = [value for result in ood if (value := set_figure(result, metric)) is not None]
        figures[f"ood_{metric}"] = float(np.mean(present)) if present else None
    figures["base_text_nll"] = set_figure(sets[BASE_TEXT], "nll") if BASE_TEXT in sets else None
    truth = sets["in_domain"]["uncertainty"]
    for kind in ("epistemic", "aleatoric"):
        figures[f"nll_tracks_{kind}"] = truth["rank_correlation"]["student_nll"][kind] if truth else None
    return figures


def set_figure(result: Mapping[str, Any], metric: str) -> float | None:
    found = result["metrics"].get(metric)
    return None if found is None or found["value"] is None else float(found["value"])


def set_names(evaluation: Mapping[str, Any], metric: str) -> list[str]:
    """The sets that a headline metric is made of."""
    if metric.startswith("in_domain_"):
        return ["in_domain"]
    if metric == "base_text_nll":
        return [BASE_TEXT] if BASE_TEXT in evaluation["sets"] else []
    return [name for name in evaluation["sets"] if name.startswith(OOD_PREFIX)]
