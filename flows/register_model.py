"""Stage `register_model`: the candidate into the MLflow registry, with its lineage, figures, report and the gate's verdict.

    python -m flows.register_model

Takes the candidate, all evaluations, the report and what the gate has said. The comparison is published as a pipeline run with a
child per model (docs/mlflow.md). Leaves artifacts/registration.json. The alias `challenger`
moves to the new version; `champion` moves by hand (the MLflow UI or `make promote`: docs/promotion.md) or by policy
(`registration.promote: when_gate_passes`).
"""

from typing import Any

from components.artifacts import EVALUATIONS, MODELS, REGISTRATION, REPORT, read_json, write_json
from components.params import RegistrationParams
from flows.stage_runner import main


def register_model(*, registration: RegistrationParams) -> dict[str, Any]:
    from components.evaluation.item_table import read_evaluation
    from components.promotion import promote
    from components.registration import describe_candidate, gate_reasons, read_gate
    from components.registry import register_candidate
    from components.tracking_points import PARENT_TAG
    from components.tracking_publish import publish_comparison

    candidate = read_json(REPORT / "candidate.json", made_by="compare")
    gate = read_gate(candidate)
    compared = read_json(REPORT / "comparison.json", made_by="compare")
    names = [name for method in compared["methods"].values() for name in method["models"]]
    evaluations = {name: read_evaluation(name, folder=EVALUATIONS) for name in names}
    parent = publish_comparison(compared, gate, list(evaluations.values()))
    card = describe_candidate(candidate, evaluations[candidate["model"]], gate)
    version = register_candidate(
        MODELS / candidate["model"],
        name=registration.model_name,
        tags={**card.tags, PARENT_TAG: parent},
        metrics=card.metrics,
        description=card.description,
        run_name=f"register-{candidate['model']}",
        prompts=card.prompts,
        model_card=card.model_card,
    )
    reasons = gate_reasons(gate)
    if registration.promote == "when_gate_passes" and gate["verdict"] == "pass":
        promote(registration.model_name, version.version, who="registration.promote", why=f"gate: {'; '.join(reasons)}")
    left = {
        "candidate": candidate,
        "gate": gate["verdict"],
        "reasons": reasons,
        "model": version.name,
        "version": version.version,
    }
    write_json(REGISTRATION, left)
    return {"model": f"models:/{version.name}@{version.alias}", "version": version.version, "gate": gate["verdict"]}


if __name__ == "__main__":
    main(register_model)
