"""Stage `evaluate_ood@<model>`: all figures of one model, on the in-domain test split and every OOD set.

    python -m flows.evaluate_ood base
    python -m flows.evaluate_ood uncertainty_aware 0

Takes the model, the base beside it (for drift), the prepared data, the OOD sets and (token_scores.reference: local) a reference
to tell uncertainty from. Leaves artifacts/evaluations/<model>.json with results per item.
"""

from typing import Any

from components.artifacts import EVALUATIONS, MODELS, read_json, write_json
from components.data_params import DataParams
from components.params import ComputeParams, EvaluationParams, TokenScoresParams
from flows.stage_runner import main


def evaluate_ood(
    preset: str,
    seed: int = -1,
    *,
    data: DataParams,
    token_scores: TokenScoresParams,
    evaluation: EvaluationParams,
    compute: ComputeParams,
) -> dict[str, Any]:
    from components.evaluation.comparison import model_metrics
    from components.evaluation.evaluate import evaluate_sets
    from components.evaluation.held_out_sets import load_reference, read_sets
    from components.models import load_base_model, load_model, load_prepared_tokenizer, select_device, weights_fingerprint
    from components.tracking import log_evaluation

    is_base = preset == "base"
    name = "base" if is_base else f"{preset}-{seed}"
    device = select_device(compute)
    base = load_base_model(device=device)
    model = base if is_base else load_model(MODELS / name, device=device)
    tokenizer = load_prepared_tokenizer()
    sets = read_sets(data, tokenizer, evaluation.max_items_per_set)
    reference = load_reference(token_scores, tokenizer, sets, device)
    result = {
        "model": name,
        "preset": preset,
        "seed": None if is_base else seed,
        "model_fingerprint": weights_fingerprint(None if is_base else MODELS / name),
        "sets": evaluate_sets(model, base, sets, evaluation, reference),
    }
    write_json(EVALUATIONS / f"{name}.json", result)
    metrics = {key: value for key, value in model_metrics(result).items() if value is not None}
    if not is_base:
        log_evaluation(result, read_json(MODELS / name / "training.json", made_by="post_train")["fingerprint"], metrics)
    shown = ("in_domain_accuracy", "ood_accuracy", "in_domain_nll", "ood_nll")
    return {key: round(metrics[key], 4) for key in shown if key in metrics}


if __name__ == "__main__":
    main(evaluate_ood)
