"""Stage `post_train@<preset>-<seed>`: one student, from the base, with one objective and one seed.

    python -m flows.post_train uncertainty_aware 0

Takes the base, the training rows, the teacher cache, `objective.<preset>` and `training`. Leaves artifacts/models/<cell>/ and
its curve. Checkpoints live under .work, keyed by all inputs: a killed run goes on, a changed one starts afresh.
"""

import shutil
from typing import Any

from components.artifacts import CURVES, DATA, MODELS, TEACHER_CACHE, WORK, write_csv
from components.params import ComputeParams, ObjectiveParams, TeacherCacheParams, TrainingParams
from flows.stage_runner import main


def post_train(
    preset: str,
    seed: int,
    *,
    objective: ObjectiveParams,
    training: TrainingParams,
    teacher_cache: TeacherCacheParams,
    compute: ComputeParams,
) -> dict[str, Any]:
    from components.data.tokenized import read_split
    from components.models import load_base_model, load_prepared_tokenizer, pad_token_id, save_model, select_device
    from components.objectives.resolve import resolve
    from components.teacher_cache.identity import expected_identity
    from components.teacher_cache.reader import TeacherCacheReader
    from components.tracking import record_training
    from components.training.post_train import post_train_model, run_fingerprint

    name, device = f"{preset}-{seed}", select_device(compute)
    resolved, identity = resolve(preset, objective), expected_identity(teacher_cache)
    cache = TeacherCacheReader(TEACHER_CACHE, identity)
    fingerprint = run_fingerprint(resolved, training, identity, seed)
    tokenizer = load_prepared_tokenizer()
    work = WORK / "post_train" / f"{name}-{fingerprint[:16]}"
    with record_training(preset, seed, fingerprint, {"objective": vars(resolved), "training": training.model_dump()}) as recorder:
        result = post_train_model(
            load_base_model(),
            read_split(DATA, "train"),
            cache,
            resolved,
            training,
            seed=seed,
            device=device,
            pad_token_id=pad_token_id(tokenizer),
            work=work,
            sink=recorder.log,
        )
        save_model(MODELS / name, result.model, tokenizer, fingerprint)
        write_csv(CURVES / f"{name}.csv", result.curve)
    shutil.rmtree(work, ignore_errors=True)
    return {"steps": training.num_steps, "nll": round(result.curve[-1]["nll"], 4), "resumed_at_step": result.resumed_at_step}


if __name__ == "__main__":
    main(post_train)
