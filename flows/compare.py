"""Stage `compare`: all models side by side, with intervals, the Pareto picture, the report and the candidate.

    python -m flows.compare

Takes every evaluation, curve, probe and cost of the grid, and the data card. Leaves artifacts/report/: report.html,
tokens.html and model_card.md, metrics.json and tables for DVC, comparison.json, candidate.json.
"""

from typing import Any

from components.artifacts import COSTS, CURVES, DATA, EVALUATIONS, PROBES, REPORT, publish_folder, read_csv, read_json, write_json
from components.params import ComparisonParams, ObjectiveParams, RegistrationParams
from flows.stage_runner import main


def compare(
    *,
    presets: tuple[str, ...],
    seeds: tuple[int, ...],
    objective: dict[str, ObjectiveParams],
    comparison: ComparisonParams,
    registration: RegistrationParams,
) -> dict[str, Any]:
    from components.evaluation.comparison import compare_models
    from components.evaluation.report import write_report
    from components.evaluation.report_context import describe_run

    models = [f"{preset}-{seed}" for preset in presets for seed in seeds]
    evaluations = [read_json(EVALUATIONS / f"{name}.json", made_by="evaluate_ood") for name in ["base", *models]]
    curves = {name: read_csv(CURVES / f"{name}.csv", made_by="post_train") for name in models}
    probes = {name: read_json(PROBES / f"{name}.json", made_by="post_train") for name in models}
    compared = compare_models(evaluations, comparison, registration.candidate)
    context = describe_run({name: objective[name] for name in presets}, read_json(DATA / "counts.json", made_by="prepare_data"))
    costs = {file.stem: read_json(file, made_by=file.stem.partition("-")[0]) for file in sorted(COSTS.glob("*.json"))}
    data_card = read_json(DATA / "data_card.json", made_by="prepare_data")
    with publish_folder(REPORT) as staging:
        write_report(staging, compared, curves, context, probes, data_card, costs)
        write_json(staging / "comparison.json", compared)
        write_json(staging / "candidate.json", compared["candidate"])
    return {"candidate": compared["candidate"]["model"], "models": len(models), "report": "artifacts/report/report.html"}


if __name__ == "__main__":
    main(compare)
