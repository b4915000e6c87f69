"""Tables of the report and of DVC: a column per metric, a row per evaluation set, model or log line."""

from collections.abc import Mapping
from typing import Any

from components.evaluation.report_figures import Curves
from components.evaluation.report_gate import gate_figures
from components.evaluation.report_verdict import decimals, find_difference, plain, signed

SCOPES = {"in_domain": "In-domain", "ood": "OOD sets", "base_text": "Forgetting"}
HEADLINE = (
    "in_domain_accuracy",
    "in_domain_exact_match",
    "in_domain_nll",
    "in_domain_ece",
    "ood_accuracy",
    "ood_nll",
    "base_text_nll",
)
CURVE_COLUMNS = ("step", "nll", "selected_fraction", "masked_fraction", "distillation_kl", "threshold", "loss", "grad_norm")


def metric_columns(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One column per metric that any method has: scope, name, direction, unit, and a cell per method."""
    columns = []
    for metric, description in comparison["metric_descriptions"].items():
        cells = {name: method["metrics"].get(metric) for name, method in comparison["methods"].items()}
        present = [cell for cell in cells.values() if cell]
        if not present:
            continue
        scope = next((scope for scope in SCOPES if metric.startswith(f"{scope}_")), "")
        digits = decimals([cell["mean"] for cell in present])
        best = clear_best(comparison, metric)
        columns.append(
            {
                "metric": metric,
                "scope": SCOPES.get(scope, "Uncertainty"),
                "name": metric.removeprefix(f"{scope}_") if scope else metric,
                "unit": description["unit"],
                "higher_is_better": description["higher_is_better"],
                "cells": {name: _mean_cell(cell, digits, name == best) for name, cell in cells.items()},
            }
        )
    return columns


def _mean_cell(interval: Mapping[str, Any] | None, digits: int, is_best: bool) -> dict[str, Any] | None:
    if interval is None:
        return None
    half = None if interval["low"] is None else plain((interval["high"] - interval["low"]) / 2, digits)
    return {"mean": plain(interval["mean"], digits), "half": half, "is_best": is_best}


def clear_best(comparison: Mapping[str, Any], metric: str) -> str | None:
    """The method whose mean is best and differs from the runner-up's by more than chance; None where the top is a tie.

    Told from the paired difference where there is one, otherwise from intervals over seeds that do not touch.
    """
    sign = 1 if comparison["metric_descriptions"][metric]["higher_is_better"] else -1
    means = {
        name: found
        for name, method in comparison["methods"].items()
        if name != "base" and (found := method["metrics"].get(metric))
    }
    ranked = sorted(means, key=lambda name: -sign * means[name]["mean"])
    if len(ranked) < 2:
        return None
    best, second = means[ranked[0]], means[ranked[1]]
    if found := find_difference(comparison, metric, ranked[0], ranked[1]):
        return ranked[0] if found["verdict"] == "better" else None
    if best["low"] is None or second["low"] is None:
        return None
    is_apart = best["low"] > second["high"] if sign > 0 else best["high"] < second["low"]
    return ranked[0] if is_apart else None


def set_table(comparison: Mapping[str, Any], metric: str, higher_is_better: bool) -> dict[str, Any]:
    """One row per evaluation set: the base's value, then each method's with its distance from the base, tinted by how far."""
    values = [cell[metric] for row in comparison["sets"].values() for cell in row.values() if cell[metric] is not None]
    deltas = [
        cell[metric] - row["base"][metric]
        for row in comparison["sets"].values()
        for cell in row.values()
        if None not in (cell[metric], row["base"][metric])
    ]
    digits, reach = decimals(values), max(map(abs, deltas), default=0.0) or 1.0
    rows = {}
    for name, row in sorted(comparison["sets"].items(), key=lambda pair: (pair[0].startswith("ood/"), pair[0] != "in_domain")):
        base = row["base"][metric]
        rows[name] = {method: _set_cell(cell[metric], base, digits, reach, higher_is_better) for method, cell in row.items()}
    return {"metric": metric, "unit": "share" if metric == "accuracy" else "nats/token", "rows": rows}


def _set_cell(
    value: float | None, base: float | None, digits: int, reach: float, higher_is_better: bool
) -> dict[str, Any] | None:
    if value is None:
        return None
    if base is None:
        return {"value": plain(value, digits), "delta": "", "tone": "", "tint": 0}
    delta = value - base
    tone = "good" if (delta > 0) == higher_is_better else "bad"
    return {"value": plain(value, digits), "delta": signed(delta, digits), "tone": tone, "tint": round(100 * abs(delta) / reach)}


def follows_noise(comparison: Mapping[str, Any]) -> list[str] | None:
    """Methods whose nll ranks chance above what is left to learn; None where the truth is not known."""
    pairs = {
        name: (method["metrics"].get("nll_tracks_epistemic"), method["metrics"].get("nll_tracks_aleatoric"))
        for name, method in comparison["methods"].items()
        if name != "base"
    }
    known = {
        name: (epistemic["mean"], aleatoric["mean"]) for name, (epistemic, aleatoric) in pairs.items() if epistemic and aleatoric
    }
    return [name for name, (epistemic, aleatoric) in known.items() if aleatoric > epistemic] if known else None


# --- tables for DVC -------------------------------------------------------------------------------------------------


def headline_metrics(comparison: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `dvc metrics diff` and `dvc exp show` are for: few figures per method, and the gate. All others are in methods.csv."""
    figures: dict[str, dict[str, Any]] = {
        name: {metric: round(found["mean"], 6) for metric in HEADLINE if (found := method["metrics"].get(metric))}
        for name, method in comparison["methods"].items()
    }
    gate = gate_figures(comparison)
    return {**figures, "gate": gate} if gate else figures


def model_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per model; a metric that only some of a method's models have cannot be told apart and stays empty."""
    rows = []
    for name, method in comparison["methods"].items():
        for index, model in enumerate(method["models"]):
            values = {
                metric: found["values"][index] if found and len(found["values"]) == len(method["models"]) else None
                for metric, found in method["metrics"].items()
            }
            rows.append({"method": name, "model": model, **values})
    return rows


def curve_rows(comparison: Mapping[str, Any], curves: Curves) -> list[dict[str, Any]]:
    """Every log line with its method and seed, the columns that people plot first."""
    method_of = {model: name for name, method in comparison["methods"].items() for model in method["models"]}
    rows = []
    for model, lines in curves.items():
        first = {"method": method_of.get(model, model.rpartition("-")[0]), "seed": model.rpartition("-")[2]}
        rows += [{**first, **dict.fromkeys(CURVE_COLUMNS), **line} for line in lines]
    return rows
