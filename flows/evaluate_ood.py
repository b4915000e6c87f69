"""Stage `evaluate_ood@<model>`: all figures of one model, on the in-domain test split and every OOD set.

    python -m flows.evaluate_ood base | champion | uncertainty_aware 0

Takes the model, the base beside it (for drift), the prepared data, the base's own texts, the OOD sets and, with
token_scores.reference: local, a reference to tell uncertainty from. Leaves artifacts/evaluations/<model>.json and its items
beside it, <model>.parquet.
"""

from importlib import import_module
from typing import Any

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
    from components.evaluation.evaluated_model import find_model
    from components.evaluation.item_table import write_evaluation

    # By name: how weights travel is no cache key; what they are stands in artifacts/champion.json.
    found = find_model(preset, seed, data.max_length, lambda one: import_module("components.registry").fetch_champion(one))
    if isinstance(found, str):
        write_evaluation(preset, {"absent": found})
        return {"absent": found}

    from components.evaluation.evaluate import evaluate_lm_eval_sets, evaluate_sets
    from components.evaluation.headline import model_metrics
    from components.evaluation.held_out_sets import load_reference, read_sets
    from components.models import load_base_model, load_model, load_prepared_tokenizer, select_device
    from components.tracking import log_evaluation

    device = select_device(compute)
    base, tokenizer = load_base_model(device=device), load_prepared_tokenizer()
    model = base if found.folder is None else load_model(found.folder, device=device)
    sets = read_sets(data, tokenizer, evaluation.max_items_per_set)
    reference = load_reference(token_scores, tokenizer, sets, device)
    results = evaluate_sets(model, base, sets, evaluation, reference, tokenizer)
    results |= evaluate_lm_eval_sets(model, tokenizer, evaluation, device)
    result = {**found.described(), "sets": results}
    write_evaluation(found.model, result)
    metrics = {key: value for key, value in model_metrics(result).items() if value is not None}
    if fingerprint := found.run_fingerprint():
        log_evaluation(result, fingerprint, metrics)
    shown = ("in_domain_accuracy", "ood_accuracy", "in_domain_nll", "ood_nll")
    return {key: round(metrics[key], 4) for key in shown if key in metrics}


if __name__ == "__main__":
    main(evaluate_ood)
