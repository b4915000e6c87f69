"""The report of a comparison: one HTML page that needs nothing but itself, the Pareto picture, and tables for DVC.

Equal input gives equal bytes. The page's skeleton is report.html.jinja; its words come from report_verdict.py, its tables from
report_tables.py, its figures from report_figures.py, what the masks did from report_curriculum.py, what is told of the data from
report_data_card.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts import write_csv, write_json, write_text
from components.evaluation.page import render_page
from components.evaluation.probes import NO_PROBES, Probes
from components.evaluation.report_curriculum import curriculum
from components.evaluation.report_data_card import data_section
from components.evaluation.report_figures import (
    Curves,
    curve_panels,
    method_index,
    pareto_png,
    pareto_points,
    pareto_svg,
    risk_panels,
)
from components.evaluation.report_tables import curve_rows, follows_noise, mean_metrics, metric_columns, model_rows, set_table
from components.evaluation.report_verdict import (
    against_sft_kl,
    all_differences,
    caveats,
    difference_row,
    factor_rows,
    headline,
    rival_names,
)
from components.evaluation.token_pages import render_token_page


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
    folder: Path,
    comparison: dict[str, Any],
    curves: dict[str, list[dict[str, float]]],
    context: ReportContext,
    probes: Probes = NO_PROBES,
    data_card: dict[str, Any] | None = None,
) -> None:
    """Leave report.html, tokens.html, pareto.png, metrics.json, methods.csv and curves.csv in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.html", render_html(comparison, curves, context, probes, data_card))
    write_text(folder / "tokens.html", render_token_page(comparison, probes))
    (folder / "pareto.png").write_bytes(pareto_png(pareto_points(comparison)))
    write_json(folder / "metrics.json", mean_metrics(comparison))
    write_csv(folder / "methods.csv", model_rows(comparison))
    write_csv(folder / "curves.csv", curve_rows(comparison, curves))


def render_html(
    comparison: dict[str, Any],
    curves: Curves,
    context: ReportContext,
    probes: Probes = NO_PROBES,
    data_card: dict[str, Any] | None = None,
) -> str:
    points = pareto_points(comparison)
    candidate = comparison["candidate"]["preset"]
    return render_page(
        "report.html.jinja",
        context=context,
        candidate=comparison["candidate"],
        percent=f"{comparison['confidence'] * 100:g} %",
        methods={name: method_index(comparison, name) for name in comparison["methods"]},
        num_seeds={name: method["num_seeds"] for name, method in comparison["methods"].items()},
        headline=headline(comparison),
        against_sft_kl=against_sft_kl(comparison),
        rivals=[row for name in rival_names(comparison) if (row := difference_row(comparison, candidate, name))],
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
        curriculum=curriculum(comparison, probes),
        data=data_section(data_card),
    )
