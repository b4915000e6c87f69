"""Stage `cache_teacher`: one forward pass of the frozen base over the training rows.

    python -m flows.cache_teacher
    accelerate launch --num_processes 8 -m flows.cache_teacher      # any number of ranks: they share the shards

Takes the base, artifacts/data/train.arrow and `teacher_cache`. Leaves artifacts/teacher_cache/ (see docs/teacher-cache.md).
A killed capture goes on from its finished shards; rows that the last cache holds already are not captured again.
"""

import os
from typing import Any

from components.artifacts import DATA, TEACHER_CACHE, WORK
from components.params import ComputeParams, TeacherCacheParams
from flows.stage_runner import main


def cache_teacher(*, teacher_cache: TeacherCacheParams, compute: ComputeParams) -> dict[str, Any]:
    from components.data.tokenized import read_split
    from components.models import base_vocabulary_size, load_base_model, select_device, select_dtype
    from components.teacher_cache.identity import expected_identity
    from components.teacher_cache.shard_plan import CaptureSettings
    from components.teacher_cache.writer import Rank, Teacher, write_cache

    rank = Rank.of_environment(os.environ)
    manifest = write_cache(
        Teacher(
            lambda: load_base_model(select_dtype(teacher_cache.precision), select_device(compute, rank.local)),
            base_vocabulary_size(),
        ),
        read_split(DATA, "train"),
        expected_identity(teacher_cache),
        CaptureSettings(teacher_cache.batch_tokens, teacher_cache.shard_tokens),
        target=TEACHER_CACHE,
        work=WORK / "teacher_cache",
        rank=rank,
    )
    if manifest is None:
        return {"rank": rank.number, "tokens": "left to rank 0"}
    return {"tokens": manifest.num_tokens, "records": manifest.num_records, "bytes_per_token": round(manifest.bytes_per_token, 1)}


if __name__ == "__main__":
    main(cache_teacher)
