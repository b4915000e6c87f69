"""What the report says about the run itself: commit, base, data, objectives, how to make it again."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from components.artifacts import BASE_MODEL, ROOT, read_json
from components.evaluation.report_facts import ReportContext
from components.objectives.objective import Objective
from components.objectives.resolve import resolve
from components.params import ObjectiveParams

RESULT_PATHS = ("components", "flows", "inputs", "params.yaml", "dvc.yaml", "requirements.lock")
"""What decides the results; what stages leave does not make a checkout dirty."""
SCOPES = {"step_lagged": "", "micro_batch": " of each micro-batch", "sequence": " of each row", "dataset": " of all tokens"}
"""Whose share is kept; by default that of the steps so far."""


def describe_run(objectives: dict[str, ObjectiveParams], counts: dict[str, Any]) -> ReportContext:
    """Facts of the inputs and of the checkout: they come into the report as arguments, so that equal ones give an equal page."""
    base = read_json(BASE_MODEL / "base_model.json", made_by="prepare_base")
    origin = {"embedded": "embedded world, pre-trained here", "local": f"local folder {base['folder']}"}
    schemas = ", ".join(f"{count} {schema}" for schema, count in counts["schemas"].items())
    resolved = {name: resolve(name, params) for name, params in objectives.items()}
    return ReportContext(
        base_model=f"{base['model_type']}, {base['num_parameters']:,} parameters ({origin.get(base['source'], base['hub_id'])})",
        data=f"{counts['rows_in']} rows in, {counts['rows_quarantined']} quarantined ({schemas})",
        num_train_rows=counts["rows_used"]["train"],
        base_fingerprint=base["fingerprint"],
        reproduce_command="make repro",
        objectives={name: describe_objective(objective) for name, objective in resolved.items()},
        base_hub_id=base["hub_id"],
        cached_teacher=tuple(name for name, one in resolved.items() if one.needs_teacher and one.teacher != "online"),
        git_commit=_git("rev-parse", "HEAD"),
        uncommitted=tuple(uncommitted(_git("status", "--porcelain", "--", *RESULT_PATHS))),
        params_fingerprint=_sha256(ROOT / "params.yaml"),
        dvc_lock_fingerprint=_sha256(ROOT / "dvc.lock"),
    )


def uncommitted(status: str | None) -> list[str]:
    """The paths of `git status --porcelain`, at most five of them by name."""
    paths = [line[3:] for line in (status or "").splitlines()]
    return paths if len(paths) <= 5 else [*paths[:4], f"{len(paths) - 4} more"]


def _git(*arguments: str) -> str | None:
    """None where there is no checkout, or no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()


def _sha256(path: Path) -> str | None:
    """As `sha256sum` tells it; MLflow's tags hold the same."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def describe_objective(objective: Objective) -> str:
    """The loss of one preset in a line."""
    weight = {"none": "", "probability": ", each weighed by its own probability", "entropy": ", each weighed by its entropy"}
    learned = f"maximum likelihood on {_selected(objective)}{weight[objective.token_weight]}"
    if objective.protect:
        learned += f" and on every {', '.join(objective.protect).replace('_', ' ')} token"
    if objective.scores and objective.warmup_steps:
        learned += f" (on every token in the first {objective.warmup_steps} steps)"
    divided = ", divided by the selected tokens" if objective.normalizer == "selected_tokens" else ""
    return f"{learned}{_distilled(objective)}{divided}"


def _distilled(objective: Objective) -> str:
    if not objective.distils:
        return ""
    on = {"rest": "the rest", "all": "every token", "selected": "the same tokens", "none": "no answer token"}
    distilled = on[objective.distil_on]
    prompt = " and on the prompt" if objective.prompt_tokens == "distil_only" else ""
    weight_text = f"{objective.distil_weight:g}"
    if objective.distil_weight_final is not None:
        weight_text += f" to {objective.distil_weight_final:g}"
    divergence = {
        "forward_kl": "KL(base || student)",
        "reverse_kl": "KL(student || base)",
        "jsd": "JSD(base, student)",
        "skew": "skewed KL(base || student)",
    }[objective.divergence]
    temperature = f" at temperature {objective.temperature:g}" if objective.temperature != 1 else ""
    online = ", the base running beside it" if objective.teacher == "online" else ""
    return f", plus {weight_text} x {divergence}{temperature} on {distilled}{prompt}{online}"


def _selected(objective: Objective) -> str:
    if objective.select == "all":
        return "every token"
    if objective.select == "random":
        return f"{objective.keep:.0%} of the tokens by chance"
    score = objective.column if objective.score == "column" else objective.score
    if objective.threshold is not None:
        unit = " nats" if objective.threshold_nats is not None else ""
        return f"tokens with {score} {'at least' if objective.select == 'high' else 'at most'} {objective.threshold:.3g}{unit}"
    scope = SCOPES[objective.scope] if objective.needs_threshold else ""
    return f"the {objective.keep:.0%}{scope} with the {'highest' if objective.select == 'high' else 'lowest'} {score}"
