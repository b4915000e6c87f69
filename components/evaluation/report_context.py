"""What the report says about the run itself: commit, base, data, objectives, how to make it again."""

from typing import Any

from components.artifacts import BASE_MODEL, read_json
from components.evaluation.report import ReportContext
from components.objectives.presets import Objective, resolve
from components.params import ObjectiveParams


def describe_run(objectives: dict[str, ObjectiveParams], counts: dict[str, Any]) -> ReportContext:
    """Facts that follow from the inputs alone, so that equal inputs give an equal report."""
    base = read_json(BASE_MODEL / "base_model.json", made_by="prepare_base")
    origin = {"embedded": "embedded world, pre-trained here", "local": f"local folder {base['folder']}"}
    schemas = ", ".join(f"{count} {schema}" for schema, count in counts["schemas"].items())
    return ReportContext(
        base_model=f"{base['model_type']}, {base['num_parameters']:,} parameters ({origin.get(base['source'], base['hub_id'])})",
        data=f"{counts['rows_in']} rows in, {counts['rows_quarantined']} quarantined ({schemas})",
        num_train_rows=counts["rows_used"]["train"],
        base_fingerprint=base["fingerprint"],
        reproduce_command="make repro",
        objectives={name: describe_objective(resolve(name, params)) for name, params in objectives.items()},
    )


def describe_objective(objective: Objective) -> str:
    """The loss of one preset in a line."""
    selected = {
        "all": "every token",
        "random": f"{objective.keep:.0%} of the tokens by chance",
        "high": f"the {objective.keep:.0%} with the highest {objective.score}",
        "low": f"the {objective.keep:.0%} with the lowest {objective.score}",
    }[objective.select]
    if objective.threshold_nats is not None:
        selected = f"tokens with {objective.score} beyond {objective.threshold_nats} nats"
    learned = f"maximum likelihood on {selected}"
    if not objective.distils:
        return learned
    distilled = {"rest": "the rest", "all": "every token", "selected": "the same tokens"}[objective.distil_on]
    return f"{learned}, plus {objective.distil_weight:g} x KL(base || student) on {distilled}"
