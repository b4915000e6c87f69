"""The stage as it runs, on a tiny base: nothing to score with, a user's columns, members by the students' own trainer."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from components import artifacts
from components.artifacts import write_json
from components.data.tokenized import TokenizedRow, write_rows
from components.data.training_rows import count_targets
from components.errors import DataError
from components.models import build_word_tokenizer
from components.params import ComputeParams, LoraParams, TokenScoresParams, TrainingParams
from components.token_scores import identity
from components.token_scores.reader import TokenScoreReader
from components.training import reference_columns
from flows import score_tokens as stage
from tests.conftest import VOCABULARY, build_model, build_rows

ROWS = build_rows(14)
TRAINING = TrainingParams(num_steps=4, batch_size=4, micro_batch_size=2, learning_rate=1e-2, save_every_steps=2)
CROSS_FIT = {"reference": "cross_fit", "num_members": 4, "num_steps": 6}


@dataclass(frozen=True)
class Stage:
    folder: Path

    def run(self, training: TrainingParams = TRAINING, **section: Any) -> dict[str, Any]:
        params = TokenScoresParams(**{"columns_path": str(self.folder / "columns.jsonl"), **section})
        return stage.score_tokens(token_scores=params, training=training, compute=ComputeParams(device="cpu"))

    def read(self, training: TrainingParams = TRAINING, **section: Any) -> TokenScoreReader:
        params = TokenScoresParams(**{"columns_path": str(self.folder / "columns.jsonl"), **section})
        return TokenScoreReader(self.folder / "token_scores", identity.expected_identity(params, training))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """What the stages before it leave, in a folder of this test's own; the first row occurs twice."""
    for name in ("base_model", "data"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "base_model/base_model.json", {"fingerprint": "base"})
    write_json(tmp_path / "data/identity.json", {"tokenizer_fingerprint": "words", "train_fingerprint": "rows"})
    rows = [TokenizedRow(str(n), "s", "messages", row.fingerprint, row.input_ids, row.is_target) for n, row in enumerate(ROWS)]
    write_rows(tmp_path / "data/train.arrow", [*rows, rows[0]])
    tokenizer = build_word_tokenizer([f"w{number}" for number in range(VOCABULARY - 7)], 64)
    for module in (artifacts, identity, stage):
        for name, path in (("BASE_MODEL", "base_model"), ("DATA", "data"), ("TOKEN_SCORES", "token_scores"), ("WORK", ".work")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / path)
    monkeypatch.setattr(reference_columns, "load_base_model", build_model)
    monkeypatch.setattr(reference_columns, "load_prepared_tokenizer", lambda: tokenizer)
    return Stage(tmp_path)


def write_columns(folder: Path, number_of: Callable[[int], float]) -> None:
    lines = [{"fingerprint": row.fingerprint, "own": [number_of(n)] * count_targets(row)} for n, row in enumerate(ROWS)]
    (folder / "columns.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "token_scores").iterdir())}


def test_with_nothing_to_score_with_the_artifact_has_its_rows_and_no_column(project: Stage) -> None:
    assert project.run() == {"columns": "none", "records": 14, "tokens": sum(count_targets(row) for row in ROWS)}
    assert project.read().names == ()


def test_own_columns_are_read_for_every_row(project: Stage) -> None:
    write_columns(project.folder, lambda number: number / 2)
    assert project.run(columns=("own",))["columns"] == "own"
    scores = project.read(columns=("own",))
    assert scores.read(ROWS[3].fingerprint, count_targets(ROWS[3]))["own"].unique().tolist() == [1.5]
    assert set(scores.manifest.sources) == {"columns"}


def test_a_fault_in_an_own_column_is_told_before_any_member_is_trained(project: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_columns, "load_base_model", lambda: pytest.fail("trained"))
    write_columns(project.folder, lambda number: 1e40)
    with pytest.raises(DataError, match="must be a finite number"):
        project.run(columns=("own",), **CROSS_FIT)


def test_members_trained_by_the_students_trainer_give_the_same_bytes_twice_and_leave_no_work(project: Stage) -> None:
    write_columns(project.folder, lambda number: number)
    project.run(columns=("own",), **CROSS_FIT)
    first = files(project.folder)
    project.run(columns=("own",), **CROSS_FIT)
    assert files(project.folder) == first
    scores = project.read(columns=("own",), **CROSS_FIT)
    assert scores.names == ("mutual_information", "own", "reference_entropy", "reference_nll")
    assert scores.column("mutual_information").min() >= 0
    assert [file for file in (project.folder / ".work").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("change", [{"lora": LoraParams(enabled=True)}, {"packing": True}, {"precision": "bf16"}], ids=str)
def test_members_are_trained_with_the_students_settings(project: Stage, change: dict[str, Any]) -> None:
    project.run(**CROSS_FIT)
    plain_N = project.read(**CROSS_FIT).column("reference_nll")
    training = TRAINING.model_copy(update=change)
    project.run(training, **CROSS_FIT)
    other_N = project.read(training, **CROSS_FIT).column("reference_nll")
    assert not torch.equal(other_N, plain_N) or "packing" in change
    assert torch.corrcoef(torch.stack([other_N, plain_N]))[0, 1] > 0.8


def test_other_settings_of_the_members_give_other_scores_and_are_refused_by_the_old_reader(project: Stage) -> None:
    project.run(**CROSS_FIT)
    before_N = project.read(**CROSS_FIT).column("reference_nll")
    changed = {**CROSS_FIT, "seed": 1}
    project.run(**changed)
    assert not torch.equal(project.read(**changed).column("reference_nll"), before_N)
    with pytest.raises(Exception, match=r"token_scores\.seed: scores have 1, this run needs 0"):
        project.read(**CROSS_FIT)


def test_a_local_reference_is_fingerprinted_by_its_weights(project: Stage) -> None:
    folder = project.folder / "reference"
    build_model(5).save_pretrained(folder)
    reference_columns.load_prepared_tokenizer().save_pretrained(folder)
    section = {"reference": "local", "reference_path": str(folder)}
    assert project.run(**section)["columns"] == "reference_entropy reference_nll"
    first = project.read(**section).manifest.sources["reference"]
    build_model(6).save_pretrained(folder)
    project.run(**section)
    assert project.read(**section).manifest.sources["reference"] != first
