"""Stage `cache_teacher`: one forward pass of the frozen base over the training rows.

    python -m flows.cache_teacher

Takes the base, artifacts/data/train.arrow and `teacher_cache`. Leaves artifacts/teacher_cache/ (see docs/teacher-cache.md).
A killed capture goes on from its finished shards.
"""

from typing import Any

from components.artifacts import DATA, TEACHER_CACHE, WORK
from components.params import ComputeParams, TeacherCacheParams
from flows.stage_runner import main


def cache_teacher(*, teacher_cache: TeacherCacheParams, compute: ComputeParams) -> dict[str, Any]:
    from components.data.tokenized import read_split
    from components.models import load_base_model, select_device, select_dtype
    from components.teacher_cache.identity import expected_identity
    from components.teacher_cache.writer import CaptureSettings, write_cache

    device = select_device(compute)
    identity = expected_identity(teacher_cache)
    model = load_base_model(select_dtype(teacher_cache.precision), device)
    manifest = write_cache(
        model,
        read_split(DATA, "train"),
        identity,
        CaptureSettings(teacher_cache.batch_tokens, teacher_cache.shard_tokens),
        target=TEACHER_CACHE,
        work=WORK / "teacher_cache",
    )
    return {"tokens": manifest.num_tokens, "records": manifest.num_records, "bytes_per_token": round(manifest.bytes_per_token, 1)}


if __name__ == "__main__":
    main(cache_teacher)
