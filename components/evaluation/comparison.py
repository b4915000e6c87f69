"""Putting all evaluations side by side: means and intervals over seeds, paired differences, the candidate.

`accuracy` over OOD sets is the mean of the sets (each counts the same); sets without a scored token are left out of it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from components.errors import ArtifactError
from components.evaluation.statistics import REPAIR, ItemScores, mean_interval, paired_difference
from components.params import ComparisonParams

OOD_PREFIX = "ood/"
SET_METRICS = ("accuracy", "nll", "ece", "brier", "aurc", "drift_kl")
METRICS: dict[str, dict[str, Any]] = {
    "in_domain_accuracy": {"unit": "share", "higher_is_better": True},
    "in_domain_nll": {"unit": "nats/token", "higher_is_better": False},
    "in_domain_ece": {"unit": "share", "higher_is_better": False},
    "in_domain_brier": {"unit": "0 to 2", "higher_is_better": False},
    "in_domain_aurc": {"unit": "share", "higher_is_better": False},
    "ood_accuracy": {"unit": "share", "higher_is_better": True},
    "ood_nll": {"unit": "nats/token", "higher_is_better": False},
    "ood_ece": {"unit": "share", "higher_is_better": False},
    "ood_brier": {"unit": "0 to 2", "higher_is_better": False},
    "ood_aurc": {"unit": "share", "higher_is_better": False},
    "in_domain_drift_kl": {"unit": "nats/token", "higher_is_better": False},
    "ood_drift_kl": {"unit": "nats/token", "higher_is_better": False},
    "nll_tracks_epistemic": {"unit": "Spearman", "higher_is_better": True},
    "nll_tracks_aleatoric": {"unit": "Spearman", "higher_is_better": False},
}


def compare_models(evaluations: list[dict[str, Any]], params: ComparisonParams, candidate: str) -> dict[str, Any]:
    """The whole comparison as JSON: `methods`, `sets`, `differences`, `candidate`, `metric_descriptions`, and two for the
    section on uncertainty: `uncertainty_against` (law, reference or None) and `risk_coverage` (in-domain, per method)."""
    by_preset: dict[str, list[dict[str, Any]]] = {}
    for evaluation in evaluations:
        by_preset.setdefault(evaluation["preset"], []).append(evaluation)
    if "base" not in by_preset:
        raise ArtifactError("the base model's evaluation is missing. Make it with: dvc repro evaluate_base")
    for evaluation in evaluations:
        if set(evaluation["sets"]) != set(evaluations[0]["sets"]):
            names = sorted(set(evaluation["sets"]) ^ set(evaluations[0]["sets"]))
            raise ArtifactError(f"{evaluation['model']} and {evaluations[0]['model']} differ in the sets {names}. Run: {REPAIR}")
    return {
        "methods": {preset: _summarise(runs, params.confidence) for preset, runs in by_preset.items()},
        "sets": {name: _set_row(name, by_preset) for name in evaluations[0]["sets"]},
        "differences": _differences(by_preset, params),
        "candidate": choose_candidate(by_preset[candidate]),
        "metric_descriptions": METRICS,
        "confidence": params.confidence,
        "uncertainty_against": uncertainty_against(evaluations),
        "risk_coverage": {preset: _mean_risk_coverage(runs) for preset, runs in by_preset.items()},
    }


def uncertainty_against(evaluations: list[dict[str, Any]]) -> str | None:
    """What the in-domain uncertainty scores were told from: the true law, a reference model, or nothing."""
    tables = [evaluation["sets"]["in_domain"]["uncertainty"] for evaluation in evaluations]
    return next((str(table.get("against", "law")) for table in tables if table), None)


def _mean_risk_coverage(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """In-domain risk at each coverage, mean over seeds (which answer the same tokens, so at the same coverages)."""
    curves = [run["sets"]["in_domain"].get("risk_coverage", []) for run in runs]
    return [
        {"coverage": points[0]["coverage"], "risk": float(np.mean([point["risk"] for point in points]))}
        for points in zip(*curves, strict=True)
    ]


def model_metrics(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """The headline figures of one model (see METRICS); None where a figure does not exist for this data."""
    sets = evaluation["sets"]
    ood = [result for name, result in sets.items() if name.startswith(OOD_PREFIX)]
    figures: dict[str, float | None] = {}
    for metric in SET_METRICS:
        figures[f"in_domain_{metric}"] = sets["in_domain"]["metrics"][metric]["value"]
        values = [result["metrics"][metric]["value"] for result in ood]
        present = [value for value in values if value is not None]
        figures[f"ood_{metric}"] = float(np.mean(present)) if present else None
    truth = sets["in_domain"]["uncertainty"]
    for kind in ("epistemic", "aleatoric"):
        figures[f"nll_tracks_{kind}"] = truth["rank_correlation"]["student_nll"][kind] if truth else None
    return figures


def _summarise(runs: list[dict[str, Any]], confidence: float) -> dict[str, Any]:
    figures = [model_metrics(run) for run in runs]
    summary: dict[str, Any] = {}
    for metric in METRICS:
        values = [value for figure in figures if (value := figure[metric]) is not None]
        summary[metric] = asdict(mean_interval(values, confidence)) if values else None
    return {"num_seeds": len(runs), "models": [run["model"] for run in runs], "metrics": summary}


def _set_row(name: str, by_preset: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, float | None]]:
    row: dict[str, dict[str, float | None]] = {}
    for preset, runs in by_preset.items():
        row[preset] = {}
        for metric in SET_METRICS:
            values = [run["sets"][name]["metrics"][metric]["value"] for run in runs]
            present = [value for value in values if value is not None]
            row[preset][metric] = float(np.mean(present)) if present else None
    return row


def item_scores(runs: list[dict[str, Any]], names: list[str]) -> dict[str, ItemScores]:
    """Per set, correct counts by seed and scored item; refuses models that were scored on different items."""
    scores: dict[str, ItemScores] = {}
    for name in names:
        items = [run["sets"][name]["items"] for run in runs]
        keys = [[(item["item_id"], item["num_tokens"], item["num_scored"]) for item in one] for one in items]
        if any(other != keys[0] for other in keys):
            raise ArtifactError(f"models were evaluated on different items of {name}. Evaluate all on the same sets: {REPAIR}")
        correct_SI = np.array([[item["num_correct"] for item in one] for one in items], dtype=np.float64)
        scored_I = np.array([item["num_scored"] for item in items[0]], dtype=np.float64)
        kept = scored_I > 0
        if kept.any():
            ids = tuple(f"{item['item_id']} ({item['num_tokens']} tokens)" for item in items[0] if item["num_scored"] > 0)
            scores[name] = ItemScores(ids, correct_SI[:, kept], scored_I[kept])
    return scores


def _differences(by_preset: Mapping[str, list[dict[str, Any]]], params: ComparisonParams) -> list[dict[str, Any]]:
    """Every method against the base and against every other method listed before it, in-domain and OOD accuracy."""
    presets = list(by_preset)
    found = []
    for metric in ("in_domain_accuracy", "ood_accuracy"):
        scores = {preset: item_scores(runs, set_names(runs[0], metric)) for preset, runs in by_preset.items()}
        for index, method in enumerate(presets):
            for reference in presets[:index]:
                difference = paired_difference(
                    scores[method],
                    scores[reference],
                    num_resamples=params.num_resamples,
                    confidence=params.confidence,
                    seed=params.seed,
                )
                found.append(
                    {
                        "metric": metric,
                        "method": method,
                        "reference": reference,
                        **asdict(difference),
                        "verdict": difference.verdict,
                    }
                )
    return found


def set_names(evaluation: Mapping[str, Any], metric: str) -> list[str]:
    if metric == "in_domain_accuracy":
        return ["in_domain"]
    return [name for name in evaluation["sets"] if name.startswith(OOD_PREFIX)]


def choose_candidate(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the configured preset, the seed with the lowest nll on the validation split: neither test nor OOD sets choose."""
    best = min(runs, key=lambda run: float(run["sets"]["validation"]["metrics"]["nll"]["value"]))
    return {
        "model": best["model"],
        "preset": best["preset"],
        "seed": best["seed"],
        "validation_nll": best["sets"]["validation"]["metrics"]["nll"]["value"],
        "model_fingerprint": best["model_fingerprint"],
    }
