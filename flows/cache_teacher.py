"""Stage `cache_teacher`: one forward pass of the frozen base over the training rows.

    python -m flows.cache_teacher
    accelerate launch --num_processes 8 -m flows.cache_teacher      # any number of ranks: they share the shards

Takes the base, artifacts/data/train.arrow and `teacher_cache`. Leaves artifacts/teacher_cache/ (see docs/teacher-cache.md).
`source: distillkit` or `vllm` imports stored laws instead (docs/teacher-cache.md).
A killed capture goes on from its finished shards; rows that the last cache holds already are not captured again.
"""

import os
from typing import Any

from components.artifacts import DATA, ROOT, TEACHER_CACHE, WORK
from components.params import ComputeParams, TeacherCacheParams
from flows.stage_runner import main


def cache_teacher(*, teacher_cache: TeacherCacheParams, compute: ComputeParams) -> dict[str, Any]:
    from components.cache_interchange.foreign import read_foreign
    from components.cache_interchange.import_laws import import_cache
    from components.data.tokenized import read_training_rows
    from components.models import base_vocabulary_size, load_base_model, refuse_changed_base, select_device, select_dtype
    from components.teacher_cache.disk_space import megabytes
    from components.teacher_cache.identity import expected_identity
    from components.teacher_cache.publication import unfinished_bytes
    from components.teacher_cache.shard_plan import CaptureSettings
    from components.teacher_cache.writer import Rank, Teacher, write_cache

    rank = Rank.of_environment(os.environ)
    rows, identity, vocabulary_size = read_training_rows(DATA), expected_identity(teacher_cache), base_vocabulary_size()
    settings = CaptureSettings(teacher_cache.batch_tokens, teacher_cache.shard_tokens)
    places = {"target": TEACHER_CACHE, "work": WORK / "teacher_cache"}
    if teacher_cache.source == "capture":
        refuse_changed_base()
        dtype = select_dtype(teacher_cache.precision)
        teacher = Teacher(lambda: load_base_model(dtype, select_device(compute, rank.local)), vocabulary_size)
        manifest = write_cache(teacher, rows, identity, settings, rank=rank, **places)
    elif rank.number == 0:
        laws = read_foreign(ROOT / teacher_cache.import_path, vocabulary_size)
        manifest = import_cache(laws, rows, identity, settings, vocabulary_size, **places)
    if rank.number != 0 or manifest is None:
        return {"rank": rank.number, "tokens": "rank 0 tells"}
    if left := unfinished_bytes(places["work"]):
        print(
            f"unfinished captures with other settings hold {megabytes(left)} in {places['work']}: go on with them, or remove it"
        )
    return {
        "tokens": manifest.num_tokens,
        "records": manifest.num_records,
        "bytes": manifest.num_bytes,
        "bytes_per_token": round(manifest.bytes_per_token, 1),
    }


if __name__ == "__main__":
    main(cache_teacher)
