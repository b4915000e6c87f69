"""The command as it runs, on a tiny base: what it leaves and says, and what it refuses with the command that repairs it."""

import json
from pathlib import Path
from typing import Any

import pytest

from components import artifacts, models
from components.artifacts import write_json
from components.data.tokenized import TokenizedRow, write_rows
from components.errors import ArtifactError, DataError, ParamsError
from components.models import build_word_tokenizer
from components.params import CachePlanParams, ComputeParams, ObjectiveParams, TeacherCacheParams, TrainingParams
from components.teacher_cache import identity
from flows import plan_cache as command
from tests.conftest import VOCABULARY, Row, build_model, build_rows

ROWS = build_rows(30)
OBJECTIVE = {name: ObjectiveParams(preset=name) for name in ("sft", "sft_kl")}


def write_train(folder: Path, rows: list[Row]) -> None:
    kept = [TokenizedRow(str(n), "s", "messages", row.fingerprint, row.input_ids, row.is_target) for n, row in enumerate(rows)]
    write_rows(folder / "data/train.arrow", kept)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What prepare_base and prepare_data leave, in a folder of this test's own."""
    for name in ("base_model", "data/tokenizer"):
        (tmp_path / name).mkdir(parents=True)
    build_model().save_pretrained(tmp_path / "base_model")
    build_word_tokenizer([f"w{n}" for n in range(VOCABULARY - 7)], 64).save_pretrained(tmp_path / "data/tokenizer")
    write_json(tmp_path / "base_model/base_model.json", {"source": "embedded", "fingerprint": "base"})
    names = ("tokenizer_fingerprint", "template_fingerprint", "train_fingerprint")
    write_json(tmp_path / "data/identity.json", {name: "f" for name in names})
    write_train(tmp_path, ROWS)
    for module in (artifacts, identity, models, command):
        for name, path in (("BASE_MODEL", "base_model"), ("DATA", "data"), ("TEACHER_CACHE", "teacher_cache"), ("WORK", ".work")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / path)
    return tmp_path


def run(**cache: Any) -> dict[str, Any]:
    return command.plan_cache(
        presets=("sft", "sft_kl"),
        seeds=(0, 1),
        objective=OBJECTIVE,
        training=TrainingParams(num_steps=4, batch_size=4, micro_batch_size=4),
        teacher_cache=TeacherCacheParams(**cache),
        cache_plan=CachePlanParams(num_records=8),
        compute=ComputeParams(device="cpu"),
    )


def test_it_prints_the_page_and_leaves_it_with_its_figures_in_the_work_folder_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(file for file in project.rglob("*") if file.is_file())
    assert run() == {"records_probed": 8, "page": ".work/cache_plan/plan.md"}
    page = (project / ".work/cache_plan/plan.md").read_text()
    assert page in capsys.readouterr().out and "2 cells of the grid" in page
    figures = json.loads((project / ".work/cache_plan/plan.json").read_text())
    assert figures["size"]["num_records"] == 30 and figures["device"] == "CPU, 1 torch thread"
    left = {file for file in project.rglob("*") if file.is_file()} - set(before)
    assert {str(file.relative_to(project)) for file in left} == {".work/cache_plan/plan.md", ".work/cache_plan/plan.json"}


@pytest.mark.parametrize(("precision", "positions"), [("bf16", "targets"), ("fp32", "all")])
def test_it_plans_every_kind_of_capture(project: Path, precision: str, positions: str) -> None:
    assert run(precision=precision, positions=positions, temperature=2.0 if positions == "all" else 1.0)["records_probed"] == 8


@pytest.mark.parametrize(
    ("missing", "repair"),
    [("base_model/base_model.json", "dvc repro prepare_base"), ("data/identity.json", "dvc repro prepare_data")],
)
def test_what_is_not_there_yet_names_the_stage_that_makes_it(project: Path, missing: str, repair: str) -> None:
    (project / missing).unlink()
    with pytest.raises(ArtifactError, match=f"{missing} is missing.*{repair}"):
        run()


def test_rows_that_are_not_there_and_a_split_without_rows_are_refused(project: Path) -> None:
    (project / "data/train.arrow").unlink()
    with pytest.raises(ArtifactError, match=r"train\.arrow cannot be read.*dvc repro -f -s prepare_data"):
        run()
    write_train(project, [])
    with pytest.raises(DataError, match=r"the training split has no rows.*dvc repro -f -s prepare_data"):
        run()


def test_rows_longer_than_the_base_can_read_are_refused(project: Path) -> None:
    write_train(project, [*ROWS, Row([1] * 70, [False, *[True] * 69])])
    with pytest.raises(
        ParamsError, match=r"has 70 tokens, the base model reads 64.*data\.max_length: 64.*dvc repro prepare_data"
    ):
        run()


def test_laws_that_are_imported_need_no_plan(project: Path) -> None:
    with pytest.raises(ParamsError, match=r"teacher_cache\.source vllm captures nothing"):
        run(source="vllm")
