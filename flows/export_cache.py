"""Command `export_cache`: the teacher cache as one parquet file for other tools. No stage: `dvc repro` never runs it.

    python -m flows.export_cache

Takes the training rows and artifacts/teacher_cache/, which is refused as training would refuse it: unless it was made for these
data, this base and these settings. Leaves the file at `cache_export.path`: its columns are described in
components/cache_interchange/parquet_export.py, and its schema's metadata has the cache's identity.
"""

from typing import Any

from components.artifacts import DATA, ROOT, TEACHER_CACHE
from components.params import CacheExportParams, TeacherCacheParams
from flows.stage_runner import main


def export_cache(*, teacher_cache: TeacherCacheParams, cache_export: CacheExportParams) -> dict[str, Any]:
    from components.cache_interchange.export_cache import export_cache as export
    from components.data.tokenized import read_split
    from components.teacher_cache.identity import expected_identity
    from components.teacher_cache.reader import TeacherCacheReader

    cache, file = TeacherCacheReader(TEACHER_CACHE, expected_identity(teacher_cache)), ROOT / cache_export.path
    num_records = export(cache, read_split(DATA, "train"), file)
    return {"records": num_records, "megabytes": round(file.stat().st_size / 1e6, 2), "file": cache_export.path}


if __name__ == "__main__":
    main(export_cache)
