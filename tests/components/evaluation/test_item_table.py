"""Laws of an evaluation on disk: what was written is read, items and figures apart, and damage names its repair."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.errors import ArtifactError
from components.evaluation.evaluate import evaluate_sets
from components.evaluation.item_table import ITEM_COLUMNS, read_evaluation, write_evaluation
from components.params import EvaluationParams
from tests.components.evaluation.conftest import item, table_model

REPAIR = r"Make it again with: dvc repro -f -s evaluate_ood"


@pytest.fixture
def result() -> dict[str, Any]:
    sets = {"in_domain": [item([1, 2, 3]), item([4, 4])], "ood/pick": [item([1, 2], [1, 3], kind="choice")]}
    made = evaluate_sets(table_model(), table_model(seed=1), sets, EvaluationParams())
    made["in_domain"]["items"][0] |= {
        "exact_match": 1,
        "num_generated": 3,
        "is_finished": True,
        "answer": "#### 🎉",
        "expected": "x",
    }
    return {"model": "sft-0", "preset": "sft", "seed": 0, "model_fingerprint": "f", "sets": made}


def test_what_was_written_is_read(result: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation("sft-0", result, tmp_path)
    assert read_evaluation("sft-0", folder=tmp_path) == result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sft-0.json", "sft-0.parquet"]


def test_items_are_a_table_of_their_own(result: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation("sft-0", result, tmp_path)
    assert "items" not in json.loads((tmp_path / "sft-0.json").read_text())["sets"]["in_domain"]
    table = pq.read_table(tmp_path / "sft-0.parquet")
    assert table.schema.names == ["set", *ITEM_COLUMNS.names] and table.column("set").to_pylist() == ["in_domain"] * 2 + [
        "ood/pick"
    ]
    assert set(result["sets"]["in_domain"]["items"][0]) == set(ITEM_COLUMNS.names)


def test_the_same_evaluation_is_the_same_bytes(result: dict[str, Any], tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_evaluation("sft-0", result, folder)
    assert (tmp_path / "a/sft-0.parquet").read_bytes() == (tmp_path / "b/sft-0.parquet").read_bytes()


def test_a_model_that_is_not_there_says_why_and_has_an_empty_table(tmp_path: Path) -> None:
    write_evaluation("champion", {"absent": "nobody was promoted"}, tmp_path)
    assert read_evaluation("champion", folder=tmp_path) == {"absent": "nobody was promoted"}
    assert pq.read_table(tmp_path / "champion.parquet").num_rows == 0


def test_a_missing_evaluation_names_its_stage(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"base\.json is missing\. Make it with: dvc repro evaluate_base"):
        read_evaluation("base", made_by="evaluate_base", folder=tmp_path)


def test_every_damage_is_told_with_its_file_and_its_repair(result: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation("sft-0", result, tmp_path)
    figures, table = tmp_path / "sft-0.json", tmp_path / "sft-0.parquet"
    whole, items = figures.read_text(), table.read_bytes()
    for damaged in (b"", items[: len(items) // 2], items[:-1] + b"x"):
        table.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=rf"sft-0\.parquet cannot be read .*{REPAIR}"):
            read_evaluation("sft-0", folder=tmp_path)
    table.unlink()
    with pytest.raises(ArtifactError, match=rf"sft-0\.parquet is missing\. {REPAIR}"):
        read_evaluation("sft-0", folder=tmp_path)
    table.write_bytes(items)
    figures.write_text(whole.replace('"num_items": 2', '"num_items": 3'))
    with pytest.raises(ArtifactError, match=rf"sft-0\.parquet holds 2 items of in_domain, .*{REPAIR}"):
        read_evaluation("sft-0", folder=tmp_path)
    for other in ("[]", "{}", whole[:-9]):
        figures.write_text(other)
        with pytest.raises(ArtifactError, match=rf"sft-0\.json .*{REPAIR}"):
            read_evaluation("sft-0", folder=tmp_path)


def test_an_evaluation_of_the_former_format_is_refused(result: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation("sft-0", result, tmp_path)
    pq.write_table(pq.read_table(tmp_path / "sft-0.parquet").drop(["drift_sum"]), tmp_path / "sft-0.parquet")
    with pytest.raises(ArtifactError, match=rf"has the columns .*{REPAIR}"):
        read_evaluation("sft-0", folder=tmp_path)
