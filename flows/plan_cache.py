"""Command `plan_cache`: what the teacher cache will cost, before anything long runs. No stage: `dvc repro` never runs it.

    python -m flows.plan_cache

Takes the base, artifacts/data/train.arrow, `teacher_cache`, `cache_plan` and the grid. Prints size and hours, a table of other
numbers of entries, and from when on the cache pays; leaves .work/cache_plan/plan.md and plan.json (docs/teacher-cache.md).
"""

from typing import Any

from components.artifacts import DATA, TEACHER_CACHE, WORK, write_json, write_text
from components.errors import ParamsError
from components.params import CachePlanParams, ComputeParams, ObjectiveParams, TeacherCacheParams, TrainingParams
from flows.stage_runner import main


def plan_cache(
    *,
    presets: tuple[str, ...],
    seeds: tuple[int, ...],
    objective: dict[str, ObjectiveParams],
    training: TrainingParams,
    teacher_cache: TeacherCacheParams,
    cache_plan: CachePlanParams,
    compute: ComputeParams,
) -> dict[str, Any]:
    from components import models
    from components.data.tokenized import read_split
    from components.objectives.resolve import resolve
    from components.teacher_cache.identity import expected_identity
    from components.teacher_cache.shard_plan import CaptureSettings
    from components.training import cache_plan as planning
    from components.training.plan_report import render_plan

    if teacher_cache.source != "capture":
        raise ParamsError(f"params.yaml: teacher_cache.source {teacher_cache.source} captures nothing; plan with source: capture")
    identity, rows, device = expected_identity(teacher_cache), read_split(DATA, "train"), models.select_device(compute)
    models.refuse_long_rows(rows.longest)
    inputs = planning.PlanInputs(
        rows=rows,
        identity=identity,
        settings=CaptureSettings(teacher_cache.batch_tokens, teacher_cache.shard_tokens),
        vocabulary_size=models.base_vocabulary_size(),
        load_teacher=lambda: models.load_base_model(models.select_dtype(teacher_cache.precision), device),
        load_student=lambda: models.load_base_model(device=device),
        device=device,
        pad_token_id=models.pad_token_id(models.load_prepared_tokenizer()),
    )
    objectives = {name: resolve(name, objective[name]) for name in presets}
    work = WORK / "cache_plan"
    plan = planning.plan_cache(inputs, objectives, len(seeds), training, cache_plan, target=TEACHER_CACHE, work=work)
    page = render_plan(plan)
    write_text(work / "plan.md", page)
    write_json(work / "plan.json", planning.plan_figures(plan))
    print(page)
    return {"records_probed": plan.num_probed_records, "page": ".work/cache_plan/plan.md"}


if __name__ == "__main__":
    main(plan_cache)
