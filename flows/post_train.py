"""Stage `post_train@<preset>-<seed>`: one student, from the base, with one objective and one seed.

    python -m flows.post_train uncertainty_aware 0

Takes the base, the training rows, the teacher cache, the token scores, `objective.<preset>`, `training` and `probe`. Leaves
artifacts/models/<cell>/, its curve and artifacts/probes/<cell>.json. Checkpoints live under .work, keyed by all inputs: a killed
run goes on, a changed one starts afresh. `launch`: on how many processes, which the stage starts (docs/many-gpus.md).
"""

import shutil
from typing import Any

from components.artifacts import CURVES, MODELS, PROBES, WORK, write_csv, write_json
from components.params import ComputeParams, ObjectiveParams, ProbeParams, TeacherCacheParams, TokenScoresParams, TrainingParams
from components.run_params import LaunchParams
from flows.stage_runner import main


def post_train(
    preset: str,
    seed: int,
    *,
    objective: ObjectiveParams,
    training: TrainingParams,
    teacher_cache: TeacherCacheParams,
    token_scores: TokenScoresParams,
    probe: ProbeParams,
    compute: ComputeParams,
    launch: LaunchParams,
) -> dict[str, Any]:
    from components.models import load_base_model, save_model
    from components.objectives.resolve import resolve
    from components.tracking import record_training
    from components.training.inputs import load_inputs
    from components.training.ranks import join_ranks
    from components.training.train_cell import resume_key, run_fingerprint, train_cell

    name, ranks = f"{preset}-{seed}", join_ranks(launch, compute)
    resolved, inputs = resolve(preset, objective), load_inputs(teacher_cache, token_scores, training)
    fingerprint = run_fingerprint(resolved, training, inputs, seed)
    work = WORK / "post_train" / f"{name}-{resume_key(fingerprint, inputs, probe)[:16]}"
    told = {"objective": vars(resolved), "training": training.model_dump()}
    with ranks.recording(lambda: record_training(preset, seed, fingerprint, told)) as recorder:
        result = train_cell(
            load_base_model(), inputs, resolved, training, probe, recorder.log, name=preset, seed=seed, ranks=ranks, work=work
        )
        ranks.part()
        if ranks.is_first:
            save_model(MODELS / name, result.model, inputs.tokenizer, fingerprint)
            recorder.refer_to_model()
            write_csv(CURVES / f"{name}.csv", result.curve)
            write_json(PROBES / f"{name}.json", result.probe)
    if ranks.is_first:
        shutil.rmtree(work, ignore_errors=True)
    steps = result.curve[-1]["step"] if result.best_step is None else result.best_step
    return {"steps": int(steps), "nll": round(result.curve[-1]["nll"], 4), **ranks.counted(result.amounts)}


if __name__ == "__main__":
    main(post_train)
