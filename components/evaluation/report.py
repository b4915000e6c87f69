"""The report of a comparison: one HTML page that needs nothing but itself, the Pareto picture, and tables for DVC.

Equal input gives equal bytes. The page's skeleton is report.html.jinja; its words come from report_verdict.py, its tables from
report_tables.py, its figures from report_figures.py and report_pareto.py; every section with a module of its own
(report_<section>.py) has its template beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.artifacts import write_csv, write_json, write_text
from components.evaluation.model_card import render_model_card
from components.evaluation.page import render_page
from components.evaluation.probes import NO_PROBES, Probes
from components.evaluation.report_calibration import calibration_panels, reliability_rows
from components.evaluation.report_costs import Costs, cost_ledger, cost_rows
from components.evaluation.report_curriculum import curriculum
from components.evaluation.report_data_card import data_section
from components.evaluation.report_facts import ReportContext
from components.evaluation.report_figures import Curves, curve_panels, method_index, risk_panels
from components.evaluation.report_gate import gate_section
from components.evaluation.report_pareto import pareto_png, pareto_points, pareto_svg
from components.evaluation.report_sets import left_out_lines, noise_lines, set_panels, set_rows
from components.evaluation.report_tables import (
    curve_rows,
    follows_noise,
    headline_metrics,
    metric_columns,
    model_rows,
    set_table,
)
from components.evaluation.report_tokens import token_section
from components.evaluation.report_verdict import (
    against_sft_kl,
    all_differences,
    caveats,
    difference_row,
    factor_rows,
    headline,
    is_corrected,
    more_differences,
    rival_names,
)
from components.evaluation.token_pages import render_token_page

NO_COSTS: Costs = {}


def write_report(
    folder: Path,
    comparison: dict[str, Any],
    curves: dict[str, list[dict[str, float]]],
    context: ReportContext,
    probes: Probes = NO_PROBES,
    data_card: dict[str, Any] | None = None,
    costs: Costs = NO_COSTS,
) -> None:
    """Leave the two pages, the model card, the picture, metrics.json and the tables that DVC plots in `folder`.

    Costs are on the page and in costs.csv alone: seconds differ from run to run, and nothing that a later stage reads may.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.html", render_html(comparison, curves, context, probes, data_card, costs))
    write_text(folder / "tokens.html", render_token_page(comparison, probes))
    write_text(folder / "model_card.md", render_model_card(comparison, context, data_card))
    (folder / "pareto.png").write_bytes(pareto_png(pareto_points(comparison)))
    write_json(folder / "metrics.json", headline_metrics(comparison))
    tables = {
        "methods": model_rows(comparison),
        "curves": curve_rows(comparison, curves),
        "reliability": reliability_rows(comparison),
        "set_differences": set_rows(comparison),
        "costs": cost_rows(costs),
    }
    for name, rows in tables.items():
        write_csv(folder / f"{name}.csv", rows)


def render_html(
    comparison: dict[str, Any],
    curves: Curves,
    context: ReportContext,
    probes: Probes = NO_PROBES,
    data_card: dict[str, Any] | None = None,
    costs: Costs = NO_COSTS,
) -> str:
    return render_page(
        "report.html.jinja",
        context=context,
        candidate=comparison["candidate"],
        percent=f"{comparison['confidence'] * 100:g} %",
        methods={name: method_index(comparison, name) for name in comparison["methods"]},
        champion=comparison.get("champion"),
        panels=curve_panels(comparison, curves),
        curriculum=curriculum(comparison, probes),
        examples=token_section(comparison, probes),
        data=data_section(data_card),
        costs=cost_ledger(costs, context.cached_teacher, data_card),
        **_words(comparison),
        **_figures(comparison),
    )


def _words(comparison: dict[str, Any]) -> Mapping[str, Any]:
    """Verdicts, tables of differences and what must be known before they are trusted."""
    candidate = comparison["candidate"]["preset"]
    return {
        "gate": gate_section(comparison),
        "headline": headline(comparison),
        "against_sft_kl": against_sft_kl(comparison),
        "rivals": [row for name in rival_names(comparison) if (row := difference_row(comparison, candidate, name))],
        "factors": factor_rows(comparison),
        "caveats": caveats(comparison),
        "corrected": is_corrected(comparison),
        "differences": all_differences(comparison),
        "more_differences": more_differences(comparison),
        "noise": noise_lines(comparison),
        "left_out_rows": left_out_lines(comparison),
    }


def _figures(comparison: dict[str, Any]) -> Mapping[str, Any]:
    """Pictures and tables of values."""
    points, columns = pareto_points(comparison), metric_columns(comparison)
    return {
        "num_seeds": {name: method["num_seeds"] for name, method in comparison["methods"].items()},
        "pictures": [pareto_svg(points, *size) for size in ((760, 480), (380, 420))],
        "left_out": [name for name in comparison["methods"] if name not in {point.name for point in points}],
        "columns": columns,
        "has_forgetting": any(column["metric"] == "base_text_nll" for column in columns),
        "set_panels": set_panels(comparison),
        "set_tables": [set_table(comparison, "accuracy", True), set_table(comparison, "nll", False)],
        "reliability": calibration_panels(comparison),
        "follows_noise": follows_noise(comparison),
        "uncertainty_against": comparison["uncertainty_against"],
        "risk_panels": risk_panels(comparison),
    }
