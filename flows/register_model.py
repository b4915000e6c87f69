"""Stage `register_model`: the candidate into the MLflow registry, with its lineage, figures, report and the gate's verdict.

    python -m flows.register_model

Takes the candidate, its evaluation and the base's. Leaves artifacts/registration.json. The alias `challenger` moves to the new
version; `champion` moves by hand in the MLflow UI, or by policy (`registration.promote: when_gate_passes`).
"""

from typing import Any

from components.artifacts import EVALUATIONS, MODELS, REGISTRATION, REPORT, read_json, write_json
from components.params import ComparisonParams, RegistrationParams
from flows.stage_runner import main


def register_model(*, registration: RegistrationParams, comparison: ComparisonParams) -> dict[str, Any]:
    from components.evaluation.gate import judge
    from components.registration import describe_candidate
    from components.registry import promote, register_candidate

    candidate = read_json(REPORT / "candidate.json", made_by="compare")
    evaluation = read_json(EVALUATIONS / f"{candidate['model']}.json", made_by="evaluate_ood")
    base = read_json(EVALUATIONS / "base.json", made_by="evaluate_base")
    verdict = judge(evaluation, base, None, registration, comparison)
    card = describe_candidate(candidate, evaluation, verdict)
    version = register_candidate(
        MODELS / candidate["model"],
        name=registration.model_name,
        tags=card.tags,
        metrics=card.metrics,
        description=card.description,
        run_name=f"register-{candidate['model']}",
        prompts=card.prompts,
    )
    if registration.promote == "when_gate_passes" and verdict.passed:
        promote(registration.model_name, version.version, who="registration.promote", why=f"gate: {'; '.join(verdict.reasons)}")
    left = {
        "candidate": candidate,
        "gate": verdict.word,
        "reasons": list(verdict.reasons),
        "model": version.name,
        "version": version.version,
    }
    write_json(REGISTRATION, left)
    return {"model": f"models:/{version.name}@{version.alias}", "version": version.version, "gate": verdict.word}


if __name__ == "__main__":
    main(register_model)
