"""Laws of reading scores: any damage and any other run's scores are refused, with the place and the command that repairs them."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from components import artifacts
from components.data.training_rows import count_targets
from components.errors import ArtifactError, ScoresMismatchError
from components.token_scores.format import MANIFEST, SCORES
from components.token_scores.reader import TokenScoreReader
from components.token_scores.rows import distinct_rows
from components.token_scores.writer import write_scores
from tests.components.token_scores.conftest import ROWS, build_columns, build_scores_identity
from tests.conftest import build_rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(artifacts, "WORK", tmp_path / ".work")
    write_scores(build_columns(), ROWS, build_scores_identity(), target=tmp_path / "scores", sources={"columns": "abc"})
    return tmp_path / "scores"


def open_it(folder: Path, **changes: Any) -> TokenScoreReader:
    return TokenScoreReader(folder, build_scores_identity(**changes))


def test_records_are_found_in_any_order_and_together_are_the_whole_column(folder: Path) -> None:
    reader = open_it(folder)
    assert reader.names == ("own", "reference_nll") and len(reader) == len(ROWS)
    assert reader.manifest.sources == {"columns": "abc"}
    parts = {row.fingerprint: reader.read(row.fingerprint, count_targets(row)) for row in ROWS[::-1]}
    for name, written_N in build_columns().items():
        assert torch.equal(torch.cat([parts[row.fingerprint][name] for row in ROWS]), written_N)
        assert torch.equal(reader.column(name), written_N)


def test_a_stranger_and_another_number_of_targets_are_refused_with_both_fingerprints_and_the_command(folder: Path) -> None:
    stranger = build_rows(1, seed=99)[0]
    for row, num_targets in ((stranger, count_targets(stranger)), (ROWS[0], count_targets(ROWS[0]) + 1)):
        with pytest.raises(ScoresMismatchError) as caught:
            open_it(folder).read(row.fingerprint, num_targets)
        for word in (row.fingerprint, build_scores_identity().data_fingerprint, "dvc repro score_tokens"):
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reference_entropy", r"token_scores\.reference: cross_fit \(or local"),
        ("mutual_information", "num_members 4 or more"),
        ("difficulty", r"token_scores\.columns: \[difficulty\]"),
    ],
)
def test_a_column_that_is_not_there_names_the_parameter_that_makes_it(folder: Path, name: str, said: str) -> None:
    reader = open_it(folder)
    for ask in (lambda: reader.column(name), lambda: reader.require(["own", name])):
        with pytest.raises(ScoresMismatchError, match=said) as caught:
            ask()
        assert name in str(caught.value) and "dvc repro score_tokens" in str(caught.value)
    reader.require(["own", "reference_nll"])


def test_no_column_at_all_is_a_valid_artifact_that_still_knows_its_rows(tmp_path: Path, folder: Path) -> None:
    write_scores({}, ROWS, build_scores_identity(), target=folder)
    reader = open_it(folder)
    assert reader.names == () and len(reader) == len(ROWS)
    assert reader.read(ROWS[3].fingerprint, count_targets(ROWS[3])) == {}
    with pytest.raises(ScoresMismatchError, match="no column 'reference_nll'"):
        reader.column("reference_nll")


def test_scores_made_for_something_else_are_refused_when_they_are_opened(folder: Path) -> None:
    for name in ("model_fingerprint", "tokenizer_fingerprint", "data_fingerprint"):
        with pytest.raises(ScoresMismatchError, match=rf"{name}: scores have ., this run needs x.*dvc repro score_tokens"):
            open_it(folder, **{name: "x"})


def test_a_flipped_bit_anywhere_in_the_file_is_refused_by_name(folder: Path) -> None:
    draw, file = random.Random(0), folder / SCORES
    whole = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=rf"{SCORES} is damaged.*dvc repro -f -s score_tokens"):
            open_it(folder)
    file.write_bytes(whole)
    open_it(folder)


@pytest.mark.parametrize("kept", [0.0, 0.5, -1])
def test_a_truncated_or_missing_file_is_refused_by_name(folder: Path, kept: float) -> None:
    file = folder / SCORES
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if kept < 0 else whole[: int(kept * len(whole))])
    with pytest.raises(ArtifactError, match=rf"{SCORES} is damaged.*dvc repro"):
        open_it(folder)
    file.unlink()
    with pytest.raises(ArtifactError, match=rf"{SCORES} is missing.*dvc repro"):
        open_it(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"manifest.json is missing.*dvc repro score_tokens"):
        open_it(folder)


def test_two_writings_give_the_same_bytes_and_leave_no_scratch(folder: Path, tmp_path: Path) -> None:
    write_scores(build_columns(), ROWS, build_scores_identity(), target=tmp_path / "again", sources={"columns": "abc"})
    for name in (SCORES, MANIFEST):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert [file for file in (tmp_path / ".work").rglob("*") if file.is_file()] == []


def test_the_same_row_twice_is_one_and_other_targets_make_another() -> None:
    assert distinct_rows([*ROWS, *ROWS[:5]]) == ROWS


def test_numbers_that_are_not_finite_or_too_few_never_become_an_artifact(tmp_path: Path) -> None:
    for column_N in (build_columns()["own"][:-1], build_columns()["own"] / 0):
        with pytest.raises(AssertionError):
            write_scores({"own": column_N}, ROWS, build_scores_identity(), target=tmp_path / "scores")
