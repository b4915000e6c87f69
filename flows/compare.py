"""Stage `compare`: all models side by side, with intervals, the Pareto picture, the report and the candidate.

    python -m flows.compare

Takes every evaluation (the champion's, too), curve, probe and cost of the grid, and the data card. Leaves artifacts/report/:
report.html, tokens.html and model_card.md, metrics.json and tables for DVC, comparison.json, candidate.json, and the gate's
verdict on the candidate, gate.json and gate.md.
"""

from typing import Any

from components.artifacts import CHAMPION, COSTS, CURVES, DATA, PROBES, REPORT, publish_folder, read_csv, read_json, write_json
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
    from components.evaluation.gate import judge_candidate, write_gate
    from components.evaluation.item_table import read_evaluation
    from components.evaluation.report import write_report
    from components.evaluation.report_context import describe_run

    models = [f"{preset}-{seed}" for preset in presets for seed in seeds]
    evaluations = [read_evaluation(name) for name in ["base", *models]]
    version = read_json(CHAMPION, made_by="follow_champion")["champion"]
    champion = read_evaluation("champion", made_by="evaluate_champion") if version else None
    curves = {name: read_csv(CURVES / f"{name}.csv", made_by="post_train") for name in models}
    probes = {name: read_json(PROBES / f"{name}.json", made_by="post_train") for name in models}
    compared = compare_models(evaluations, comparison, registration.candidate, champion)
    compared |= judge_candidate(compared, evaluations, champion, version, registration, comparison)
    context = describe_run({name: objective[name] for name in presets}, read_json(DATA / "counts.json", made_by="prepare_data"))
    costs = {file.stem: read_json(file, made_by=file.stem.partition("-")[0]) for file in sorted(COSTS.glob("*.json"))}
    data_card = read_json(DATA / "data_card.json", made_by="prepare_data")
    with publish_folder(REPORT) as staging:
        write_report(staging, compared, curves, context, probes, data_card, costs)
        write_json(staging / "comparison.json", compared)
        write_json(staging / "candidate.json", compared["candidate"])
        write_gate(staging, compared["gate"])
    return {
        "candidate": compared["candidate"]["model"],
        "gate": compared["gate"]["verdict"],
        "models": len(models),
        "report": "artifacts/report/report.html",
    }


if __name__ == "__main__":
    main(compare)
