"""Putting all evaluations side by side: means and intervals over seeds, paired differences, the noise floor, the candidate."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from components.errors import ArtifactError
from components.evaluation.differences import method_differences, set_differences
from components.evaluation.headline import METRICS, SET_METRICS, model_metrics, set_figure
from components.evaluation.noise_floor import noise_floor
from components.evaluation.statistics import REPAIR, mean_interval
from components.params import ComparisonParams

CHAMPION = "champion"


def compare_models(
    evaluations: Sequence[dict[str, Any]], params: ComparisonParams, candidate: str, champion: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The whole comparison as JSON. The champion is shown beside the methods and is not one of them: the gate compares with it.

    `methods`, `sets` (figures), `differences` (pairs of methods), `set_differences` (against the base), `noise_floor`,
    `candidate`, `metric_descriptions`, `left_out` (set -> kind of fault -> rows not asked); for the report's pictures
    `reliability`, `risk_coverage` and `uncertainty_against` (law, reference or None).
    """
    by_preset = _by_preset(evaluations)
    shown = {**by_preset, **({CHAMPION: [champion]} if champion and "sets" in champion else {})}
    methods = {preset: _summarise(runs, params.confidence) for preset, runs in shown.items()}
    first = evaluations[0]["sets"]
    return {
        "methods": methods,
        "sets": {name: _set_row(name, shown) for name in first},
        "differences": method_differences(by_preset, params),
        "set_differences": set_differences(by_preset, params),
        "noise_floor": noise_floor({preset: methods[preset] for preset in by_preset}, params.confidence),
        "candidate": choose_candidate(by_preset[candidate]),
        "metric_descriptions": METRICS,
        "confidence": params.confidence,
        "left_out": {name: result.get("left_out", {}) for name, result in first.items()},
        "uncertainty_against": uncertainty_against(evaluations),
        "risk_coverage": {preset: _mean_risk_coverage(runs) for preset, runs in shown.items()},
        "reliability": {preset: _reliability(runs) for preset, runs in shown.items()},
    }


def _by_preset(evaluations: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_preset: dict[str, list[dict[str, Any]]] = {}
    for evaluation in evaluations:
        by_preset.setdefault(evaluation["preset"], []).append(evaluation)
    if "base" not in by_preset:
        raise ArtifactError("the base model's evaluation is missing. Make it with: dvc repro evaluate_base")
    for evaluation in evaluations:
        if set(evaluation["sets"]) != set(evaluations[0]["sets"]):
            names = sorted(set(evaluation["sets"]) ^ set(evaluations[0]["sets"]))
            raise ArtifactError(f"{evaluation['model']} and {evaluations[0]['model']} differ in the sets {names}. Run: {REPAIR}")
    return by_preset


def uncertainty_against(evaluations: Sequence[dict[str, Any]]) -> str | None:
    """What the in-domain uncertainty scores were told from: the true law, a reference model, or nothing."""
    tables = [evaluation["sets"]["in_domain"]["uncertainty"] for evaluation in evaluations]
    return next((str(table.get("against", "law")) for table in tables if table), None)


def _mean_risk_coverage(runs: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """In-domain risk at each coverage, mean over seeds (which answer the same tokens, so at the same coverages)."""
    curves = [run["sets"]["in_domain"].get("risk_coverage", []) for run in runs]
    return [
        {"coverage": points[0]["coverage"], "risk": float(np.mean([point["risk"] for point in points]))}
        for points in zip(*curves, strict=True)
    ]


def _reliability(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Bins of confidence pooled over seeds: in-domain, and over all tokens of all OOD sets."""
    found = {}
    for scope in ("in_domain", "ood"):
        curves = [
            result["reliability"]
            for run in runs
            for name, result in run["sets"].items()
            if (name == scope or name.startswith(f"{scope}/")) and result.get("reliability")
        ]
        found[scope] = [_pooled(bins) for bins in zip(*curves, strict=True)]
    return found


def _pooled(bins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    num = sum(one["num_tokens"] for one in bins)
    means = {
        key: sum(one[key] * one["num_tokens"] for one in bins if one["num_tokens"]) / num if num else None
        for key in ("confidence", "accuracy")
    }
    return {"low": bins[0]["lower"], "high": bins[0]["upper"], "num": num, **means}


def _summarise(runs: Sequence[dict[str, Any]], confidence: float) -> dict[str, Any]:
    figures = [model_metrics(run) for run in runs]
    summary: dict[str, Any] = {}
    for metric in METRICS:
        values = [value for figure in figures if (value := figure[metric]) is not None]
        summary[metric] = asdict(mean_interval(values, confidence)) if values else None
    return {"num_seeds": len(runs), "models": [run["model"] for run in runs], "metrics": summary}


def _set_row(name: str, by_preset: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, float | None]]:
    row: dict[str, dict[str, float | None]] = {}
    for preset, runs in by_preset.items():
        row[preset] = {}
        for metric in SET_METRICS:
            present = [value for run in runs if (value := _figure_of(run, name, metric)) is not None]
            row[preset][metric] = float(np.mean(present)) if present else None
    return row


def _figure_of(run: Mapping[str, Any], name: str, metric: str) -> float | None:
    """None for a set that only the champion lacks."""
    return set_figure(run["sets"][name], metric) if name in run["sets"] else None


def choose_candidate(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the configured preset, the seed with the lowest nll on the validation split: neither test nor OOD sets choose."""
    best = min(runs, key=lambda run: float(run["sets"]["validation"]["metrics"]["nll"]["value"]))
    return {
        "model": best["model"],
        "preset": best["preset"],
        "seed": best["seed"],
        "validation_nll": best["sets"]["validation"]["metrics"]["nll"]["value"],
        "model_fingerprint": best["model_fingerprint"],
    }
