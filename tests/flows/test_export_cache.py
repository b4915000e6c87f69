"""The command as it runs: the cache of the data and the base at hand is exported, another one is refused as in training."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.artifacts import write_json
from components.data.tokenized import TokenizedRow, write_rows
from components.errors import ArtifactError, CacheMismatchError
from components.params import CacheExportParams, TeacherCacheParams
from components.teacher_cache import identity
from flows import export_cache as command
from tests.conftest import build_model, build_rows, capture_rows

ROWS = build_rows(12)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache made for the base and the rows that are there."""
    for name in ("base_model", "data"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "base_model/base_model.json", {"fingerprint": "base"})
    names = ("tokenizer_fingerprint", "template_fingerprint", "train_fingerprint")
    write_json(tmp_path / "data/identity.json", {name: "f" for name in names})
    kept = [TokenizedRow(str(n), "s", "messages", row.fingerprint, row.input_ids, row.is_target) for n, row in enumerate(ROWS)]
    write_rows(tmp_path / "data/train.arrow", kept)
    places = {"BASE_MODEL": "base_model", "DATA": "data", "TEACHER_CACHE": "cache", "ROOT": ""}
    for module in (identity, command):
        for name, path in places.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / path)
    return tmp_path


def run(path: str = ".work/export/teacher_cache.parquet", **cache: Any) -> dict[str, Any]:
    return command.export_cache(teacher_cache=TeacherCacheParams(**cache), cache_export=CacheExportParams(path=path))


def test_the_cache_at_hand_is_exported_to_the_path_of_the_params(project: Path) -> None:
    capture_rows(project, build_model(), ROWS, identity.expected_identity(TeacherCacheParams()))
    result = run("elsewhere/laws.parquet")
    assert (result["records"], result["file"]) == (12, "elsewhere/laws.parquet") and 0 < result["megabytes"] < 0.1
    assert pq.read_table(project / "elsewhere/laws.parquet").num_rows == 12


def test_a_cache_of_other_data_or_settings_is_refused_as_in_training(project: Path) -> None:
    capture_rows(project, build_model(), ROWS, identity.expected_identity(TeacherCacheParams()))
    with pytest.raises(CacheMismatchError, match=r"max_entries: cache has 64, this run needs 8.*dvc repro cache_teacher"):
        run(max_entries=8)
    write_json(
        project / "data/identity.json",
        {**identity.read_json(project / "data/identity.json", made_by=""), "train_fingerprint": "g"},
    )
    with pytest.raises(CacheMismatchError, match="data_fingerprint: cache has f, this run needs g"):
        run()
    assert not (project / ".work/export").exists()


@pytest.mark.parametrize(
    ("missing", "repair"),
    [
        ("base_model/base_model.json", "dvc repro prepare_base"),
        ("data/identity.json", "dvc repro prepare_data"),
        ("cache/manifest.json", "dvc repro cache_teacher"),
    ],
)
def test_what_is_not_there_yet_names_the_stage_that_makes_it(project: Path, missing: str, repair: str) -> None:
    (project / missing).unlink(missing_ok=True)
    with pytest.raises(ArtifactError, match=f"{missing} is missing.*{repair}"):
        run()
