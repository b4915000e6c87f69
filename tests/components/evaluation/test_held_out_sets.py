"""Laws of the sets of one evaluation: both held-out splits and every OOD file, the same items for every model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import write_json
from components.data.rendering import render
from components.data.tokenized import TokenizedRow, write_rows
from components.data_params import DataParams
from components.errors import ArtifactError, DataError
from components.evaluation import base_text, held_out_sets
from components.evaluation.held_out_sets import ood_path, read_sets
from components.evaluation.items import ItemRow


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataParams:
    monkeypatch.setattr(held_out_sets, "ROOT", tmp_path)
    monkeypatch.setattr(held_out_sets, "DATA", tmp_path / "data")
    monkeypatch.setattr(base_text, "BASE_TEXT", tmp_path / "base_text.json")
    write_json(tmp_path / "base_text.json", {"texts": [[5, 6, 7], [8, 9]], "seed": 0, "base_fingerprint": "b"})
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
    assert list(sets) == ["validation", "in_domain", "base_text", "ood/icl/story", "ood/story"]
    assert all(len(items) == 3 for name, items in sets.items() if name != "base_text")
    assert [item.item_id for item in sets["in_domain"]] == ["test:0", "test:1", "test:2"]
    assert read_sets(data, tokenizer, 3) == sets


def test_the_embedded_world_brings_its_own_sets(data: DataParams, tmp_path: Path) -> None:
    assert ood_path(DataParams()) == tmp_path / "data" / "ood"
    assert ood_path(data) == tmp_path / "sets"


def test_a_folder_without_sets_is_refused(data: DataParams, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"data\.ood_path: no \.json, \.jsonl or \.txt set at .*nowhere"):
        read_sets(data.model_copy(update={"ood_path": "nowhere"}), tokenizer, 3)


def test_the_base_s_own_texts_are_a_set_unless_there_are_none(data: DataParams, tokenizer: Any, tmp_path: Path) -> None:
    first, second = read_sets(data, tokenizer, 3)["base_text"]
    assert (first.item_id, first.kind, first.prompt) == ("base_text:1", "tokens", None)
    assert first.rows == (ItemRow([tokenizer.bos_token_id, 5, 6, 7], [False, True, True, True]),)
    assert len(second.rows[0].input_ids) == 3
    write_json(tmp_path / "base_text.json", {"texts": [], "seed": 0, "base_fingerprint": "b"})
    assert "base_text" not in read_sets(data, tokenizer, 3)


def test_missing_or_damaged_texts_of_the_base_name_their_stage(data: DataParams, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "base_text.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"base_text\.json holds no texts\. .*dvc repro -f -s sample_base"):
        read_sets(data, tokenizer, 3)
    (tmp_path / "base_text.json").unlink()
    with pytest.raises(ArtifactError, match=r"base_text\.json is missing\. Make it with: dvc repro sample_base"):
        read_sets(data, tokenizer, 3)


def test_test_rows_with_a_final_answer_are_answered_freely_and_validation_rows_are_not(
    data: DataParams, tokenizer: Any, tmp_path: Path
) -> None:
    turns = ({"role": "user", "content": "4 + 4?"}, {"role": "assistant", "content": "it is\n#### 8"})
    row = render(turns, tokenizer, 100)
    for split in ("validation", "test"):
        write_rows(tmp_path / f"data/{split}.arrow", [TokenizedRow("r", "a", "gsm8k", "f", row.input_ids, row.is_target)])
    sets = read_sets(data, tokenizer, 3)
    [asked], [not_asked] = sets["in_domain"], sets["validation"]
    assert asked.prompt is not None and asked.prompt.expected == "8" and not_asked.prompt is None
