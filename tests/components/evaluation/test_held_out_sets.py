"""Laws of the sets of one evaluation: both held-out splits and every OOD file, the same items for every model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.data.tokenized import TokenizedRow, write_rows
from components.data_params import DataParams
from components.errors import DataError
from components.evaluation import held_out_sets
from components.evaluation.held_out_sets import ood_path, read_sets


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataParams:
    monkeypatch.setattr(held_out_sets, "ROOT", tmp_path)
    monkeypatch.setattr(held_out_sets, "DATA", tmp_path / "data")
    for folder in ("data", "sets/icl"):
        (tmp_path / folder).mkdir(parents=True)
    for split in ("validation", "test"):
        rows = [TokenizedRow(f"{split}:{index}", "a", "alpaca", "f", [1, 2, 3], [False, True, True]) for index in range(5)]
        write_rows(tmp_path / "data" / f"{split}.arrow", rows)
    for name in ("sets/story.json", "sets/icl/story.json"):
        (tmp_path / name).write_text(json.dumps([{"input": "a", "target": "b"}] * 4), encoding="utf-8")
    return DataParams(source="files", ood_path="sets")


def test_there_is_a_set_for_each_split_and_each_file(data: DataParams, tokenizer: Any) -> None:
    sets = read_sets(data, tokenizer, 3)
    assert list(sets) == ["validation", "in_domain", "ood/icl/story", "ood/story"]
    assert all(len(items) == 3 for items in sets.values())
    assert [item.item_id for item in sets["in_domain"]] == ["test:0", "test:1", "test:2"]
    assert read_sets(data, tokenizer, 3) == sets


def test_the_embedded_world_brings_its_own_sets(data: DataParams, tmp_path: Path) -> None:
    assert ood_path(DataParams()) == tmp_path / "data" / "ood"
    assert ood_path(data) == tmp_path / "sets"


def test_a_folder_without_sets_is_refused(data: DataParams, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"data\.ood_path: no \.json, \.jsonl or \.txt set at .*nowhere"):
        read_sets(data.model_copy(update={"ood_path": "nowhere"}), tokenizer, 3)
