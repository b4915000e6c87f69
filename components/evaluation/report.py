"""The report of a comparison: one HTML page that needs nothing but itself, the Pareto picture, and tables for DVC.

The verdict is computed from the paired differences: what beats is said to beat, what loses to lose, and a tie is called a tie.
Equal input gives equal bytes. The page's skeleton and style are report.html.jinja, its figures report_figures.py.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.artifacts import write_csv, write_json, write_text
from components.evaluation.report_figures import (
    AXES,
    Curves,
    curve_panels,
    method_index,
    pareto_png,
    pareto_points,
    pareto_svg,
    risk_panels,
)

SCOPES = {"in_domain": "In-domain", "ood": "OOD sets"}
OPPOSITE = {"better": "worse", "worse": "better", "tie": "tie"}
FACTORS = (
    ("Did masking help?", "without distillation", "masked_mle", "sft"),
    ("Did masking help?", "with distillation", "uncertainty_aware", "sft_kl"),
    ("Did distillation help?", "without masking", "sft_kl", "sft"),
    ("Did distillation help?", "with masking", "uncertainty_aware", "masked_mle"),
)
CURVE_COLUMNS = ("step", "nll", "selected_fraction", "masked_fraction", "distillation_kl", "threshold_nats", "loss", "grad_norm")
FEW_SEEDS = 5


@dataclass(frozen=True)
class ReportContext:
    """What the page says about the run itself; what is None is not mentioned. `objectives`: method -> its loss in a line."""

    base_model: str
    data: str
    num_train_rows: int
    reproduce_command: str
    objectives: Mapping[str, str] = field(default_factory=dict)
    base_fingerprint: str | None = None
    git_commit: str | None = None
    dvc_lock_fingerprint: str | None = None
    stage_seconds: Mapping[str, float] | None = None


def write_report(
    folder: Path, comparison: dict[str, Any], curves: dict[str, list[dict[str, float]]], context: ReportContext
) -> None:
    """Leave report.html, pareto.png, metrics.json, methods.csv and curves.csv in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.html", render_html(comparison, curves, context))
    (folder / "pareto.png").write_bytes(pareto_png(pareto_points(comparison)))
    write_json(folder / "metrics.json", mean_metrics(comparison))
    write_csv(folder / "methods.csv", model_rows(comparison))
    write_csv(folder / "curves.csv", curve_rows(comparison, curves))


def render_html(comparison: dict[str, Any], curves: Curves, context: ReportContext) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    points = pareto_points(comparison)
    candidate = comparison["candidate"]["preset"]
    return environment.get_template("report.html.jinja").render(
        context=context,
        candidate=comparison["candidate"],
        percent=f"{comparison['confidence'] * 100:g} %",
        methods={name: method_index(comparison, name) for name in comparison["methods"]},
        num_seeds={name: method["num_seeds"] for name, method in comparison["methods"].items()},
        headline=headline(comparison),
        against_sft_kl=against_sft_kl(comparison),
        rivals=[row for name in _rivals(comparison) if (row := difference_row(comparison, candidate, name))],
        factors=factor_rows(comparison),
        caveats=caveats(comparison),
        pictures=[pareto_svg(points, *size) for size in ((760, 480), (380, 420))],
        left_out=[name for name in comparison["methods"] if name not in {point.name for point in points}],
        columns=metric_columns(comparison),
        differences=all_differences(comparison),
        set_tables=[set_table(comparison, "accuracy", True), set_table(comparison, "nll", False)],
        panels=curve_panels(comparison, curves),
        follows_noise=follows_noise(comparison),
        uncertainty_against=comparison["uncertainty_against"],
        risk_panels=risk_panels(comparison),
    )


# --- numbers for people ---------------------------------------------------------------------------------------------


def decimals(values: Iterable[float], figures: int = 3) -> int:
    """Digits after the point (3 to 6) that show the largest of the values to so many figures: tiny accuracies stay visible."""
    scale = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(6, max(3, figures - 1 - math.floor(math.log10(scale)))) if scale else 3


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- the verdict ----------------------------------------------------------------------------------------------------


def find_difference(comparison: Mapping[str, Any], metric: str, method: str, reference: str) -> dict[str, Any] | None:
    """`method` minus `reference` in this metric, turned round where it is listed the other way; None where it is not listed."""
    for found in comparison["differences"]:
        if (found["metric"], found["method"], found["reference"]) == (metric, method, reference):
            return dict(found)
        if (found["metric"], found["method"], found["reference"]) == (metric, reference, method):
            turned = {
                "value": -found["value"],
                "low": -found["high"],
                "high": -found["low"],
                "verdict": OPPOSITE[found["verdict"]],
            }
            return {**found, "method": method, "reference": reference, **turned}
    return None


def headline(comparison: Mapping[str, Any]) -> list[str]:
    """The verdict in at most two sentences: the candidate's method against the other methods, then against the base."""
    candidate = comparison["candidate"]["preset"]
    standing = {metric: _standing(comparison, metric) for metric in AXES}
    first, second = (standing[metric] for metric in AXES)
    sentences = []
    if first and second:
        same = first == second
        sentences.append(
            f"{candidate} {first}, in-domain and OOD." if same else f"In-domain, {candidate} {first}; OOD, it {second}."
        )
    elif first or second:
        sentences.append(f"{'In-domain' if first else 'OOD'}, {candidate} {first or second}.")
    words = {"better": "better than", "worse": "worse than", "tie": "level with"}
    against_base = {metric: find_difference(comparison, metric, candidate, "base") for metric in AXES}
    parts = [
        f"{words[found['verdict']]} the base {name} ({signed(found['value'], decimals([_reach(comparison, found)], figures=2))})"
        for name, found in zip(("in-domain", "OOD"), against_base.values(), strict=True)
        if found
    ]
    return [*sentences, f"It is {' and '.join(parts)}."] if parts else sentences


def against_sft_kl(comparison: Mapping[str, Any]) -> str | None:
    """The comparison that is easiest to lose: distillation on every token is the simple remedy against forgetting."""
    row = difference_row(comparison, comparison["candidate"]["preset"], "sft_kl")
    words = {"better": "it wins", "worse": "it loses", "tie": "it is a tie", "trade-off": "it is a trade-off"}
    return f"Against sft_kl, the simple remedy (distillation on every token), {words[row['overall']]}." if row else None


def _rivals(comparison: Mapping[str, Any]) -> list[str]:
    return [name for name in comparison["methods"] if name not in ("base", comparison["candidate"]["preset"])]


def _standing(comparison: Mapping[str, Any], metric: str) -> str:
    """For example "beats sft and masked_mle, but loses to sft_kl"."""
    names: dict[str, list[str]] = {"better": [], "tie": [], "worse": []}
    for rival in _rivals(comparison):
        if found := find_difference(comparison, metric, comparison["candidate"]["preset"], rival):
            names[found["verdict"]].append(rival)
    verbs = {"better": "beats", "tie": "ties with", "worse": "loses to"}
    phrases = [f"{verbs[verdict]} {listing(rivals)}" for verdict, rivals in names.items() if rivals]
    return ", but ".join([", ".join(phrases[:-1]), phrases[-1]]) if names["worse"] and len(phrases) > 1 else ", ".join(phrases)


def difference_row(comparison: Mapping[str, Any], method: str, reference: str) -> dict[str, Any] | None:
    """One pair in both metrics, and the two verdicts taken together: better, worse, tie or trade-off."""
    found = {metric: find_difference(comparison, metric, method, reference) for metric in AXES}
    verdicts = {difference["verdict"] for difference in found.values() if difference}
    if not verdicts:
        return None
    overall = "trade-off" if {"better", "worse"} <= verdicts else next(iter(verdicts - {"tie"}), "tie")
    cells = [difference_cell(comparison, difference) for difference in found.values()]
    return {"method": method, "reference": reference, "overall": overall, "cells": cells}


def difference_cell(comparison: Mapping[str, Any], difference: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Text of one difference, and where its bar lies: per cent of the scale, zero in the middle."""
    if difference is None:
        return None
    reach = _reach(comparison, difference)
    digits = decimals([reach], figures=2)
    low, mark, high = (round(50 + 48 * difference[side] / reach, 2) for side in ("low", "value", "high"))
    return {
        "value": signed(difference["value"], digits),
        "interval": f"[{signed(difference['low'], digits)}, {signed(difference['high'], digits)}]",
        "verdict": difference["verdict"],
        "low": low,
        "mark": mark,
        "width": round(high - low, 2),
    }


def _reach(comparison: Mapping[str, Any], difference: Mapping[str, Any]) -> float:
    """Half the scale of a bar: shared by a metric, apart for differences to the base, which dwarf those between methods."""
    return (
        max(
            abs(other[side])
            for other in comparison["differences"]
            for side in ("value", "low", "high")
            if other["metric"] == difference["metric"] and _is_to_base(other) == _is_to_base(difference)
        )
        or 1.0
    )


def _is_to_base(difference: Mapping[str, Any]) -> bool:
    return "base" in (difference["method"], difference["reference"])


def factor_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The 2 x 2 read as questions: what masking and distillation each did, with and without the other."""
    words = {"better": "it helped", "worse": "it hurt", "tie": "no difference to be told from chance"}
    rows = []
    for question, setting, method, reference in FACTORS:
        if {method, reference} <= set(comparison["methods"]) and (row := difference_row(comparison, method, reference)):
            gained = [
                name
                for name, cell in zip(("in-domain", "OOD"), row["cells"], strict=True)
                if cell and cell["verdict"] == "better"
            ]
            trade = (
                f"a trade-off: gained {listing(gained)}, lost {'OOD' if gained == ['in-domain'] else 'in-domain'}"
                if gained
                else ""
            )
            rows.append({"question": question, "setting": setting, "reading": words.get(row["overall"], trade), **row})
    return rows


def all_differences(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every pair once, those with the base first."""
    pairs = dict.fromkeys((found["method"], found["reference"]) for found in comparison["differences"])
    rows = [row for pair in pairs if (row := difference_row(comparison, *pair))]
    return sorted(rows, key=lambda row: not _is_to_base(row))


def caveats(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know before trusting the verdicts."""
    seeds = min((method["num_seeds"] for name, method in comparison["methods"].items() if name != "base"), default=0)
    said = []
    if seeds == 1:
        said.append(
            "One seed: means have no interval, and those of differences cover the choice of items, not the luck of training."
        )
    elif 1 < seeds < FEW_SEEDS:
        said.append(f"{seeds} seeds say little about the luck of training: a narrow win may not survive other seeds.")
    if comparison["differences"]:
        chance = f"{(1 - comparison['confidence']) * 100:.3g} %"
        tested = f"{len(comparison['differences'])} differences are tested one by one"
        said.append(f"{tested}: of those without a true effect about {chance} still look like one.")
    return said


# --- tables ---------------------------------------------------------------------------------------------------------


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
                "name": metric.removeprefix(f"{scope}_"),
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


def mean_metrics(comparison: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        name: {metric: round(found["mean"], 6) for metric, found in method["metrics"].items() if found}
        for name, method in comparison["methods"].items()
    }


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
