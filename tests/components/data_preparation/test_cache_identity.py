"""What a teacher cache was made for is told from what a run needs: each cause by its own field, with both values."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from components import models
from components.artifacts import fingerprint_file, write_json
from components.data.tokenized import read_training_rows
from components.data_contract.overlap import OverlapIndex
from components.data_preparation.prepare import PreparedData, always, prepare_files
from components.data_preparation.publish import write_prepared
from components.errors import ArtifactError, CacheMismatchError, ModelError
from components.data_params import DataParams
from components.params import TeacherCacheParams
from components.teacher_cache import identity
from components.teacher_cache.format import CacheIdentity, check_identity

MESSAGES = [
    [{"role": role, "content": f"{role} {turn} of {row}"} for turn in range(2) for role in ("user", "assistant")]
    for row in range(8)
]


def identity_of(
    folder: Path, tokenizer: Any, *, rows: int = 7, base: str = "b", max_length: int = 400, **cache: Any
) -> CacheIdentity:
    """As `expected_identity` reads it from the artifacts of such a run."""
    folder.mkdir()
    lines = [json.dumps({"messages": conversation}) for conversation in MESSAGES[:rows]]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    params = DataParams(max_length=max_length)
    prepared = prepare_files(folder / "a.jsonl", tokenizer, params, always("train"), OverlapIndex([], []), PreparedData())
    write_prepared(prepared, tokenizer, folder)
    write_json(folder / "base_model.json", {"fingerprint": base})
    with patch.object(identity, "DATA", folder), patch.object(identity, "BASE_MODEL", folder):
        return identity.expected_identity(TeacherCacheParams(**cache))


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "another model": ({"base": "c"}, {"model_fingerprint"}),
    "one more row": ({"rows": 8}, {"data_fingerprint"}),
    "another truncation": ({"max_length": 25}, {"data_fingerprint"}),
    "another temperature": ({"temperature": 2.0}, {"temperature"}),
    "another size": ({"max_entries": 8}, {"max_entries"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_told_by_its_field_with_both_values(name: str, make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    changes, fields = CHANGES[name]
    tokenizer = make_tokenizer("byte_level", "plain")
    refuse(identity_of(tmp_path / "a", tokenizer), identity_of(tmp_path / "b", tokenizer, **changes), fields)


def test_another_template_and_another_tokenizer_are_told_apart(make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    plain, other = (copy.deepcopy(make_tokenizer("byte_level", "plain")) for _ in range(2))
    first = identity_of(tmp_path / "a", plain)
    plain.chat_template = plain.chat_template.replace("capitalize", "upper")
    refuse(first, identity_of(tmp_path / "b", plain), {"template_fingerprint", "data_fingerprint"})
    other.add_tokens(["assistant 0"])
    refuse(first, identity_of(tmp_path / "c", other), {"tokenizer_fingerprint", "data_fingerprint"})


def refuse(made_for: CacheIdentity, needed: CacheIdentity, fields: set[str]) -> None:
    check_identity(made_for, made_for, Path("cache"))
    with pytest.raises(CacheMismatchError) as caught:
        check_identity(made_for, needed, Path("cache"))
    said = str(caught.value)
    for field in fields:
        assert f"{field}: cache has {getattr(made_for, field)}, this run needs {getattr(needed, field)}" in said
    assert said.count("cache has") == len(fields) and "Run: dvc repro cache_teacher" in said


def test_rows_that_are_not_those_of_the_identity_beside_them_are_refused(
    make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    for name, rows in (("a", 7), ("b", 8)):
        identity_of(tmp_path / name, make_tokenizer("byte_level", "plain"), rows=rows)
    assert len(read_training_rows(tmp_path / "a")) == 7
    (tmp_path / "a" / "train.arrow").write_bytes((tmp_path / "b" / "train.arrow").read_bytes())
    with pytest.raises(
        ArtifactError, match=r"data fingerprint \w{32}, identity.json .* says \w{32}.*dvc repro -f -s prepare_data"
    ):
        read_training_rows(tmp_path / "a")


def test_weights_that_are_not_those_that_were_fingerprinted_are_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(name.encode())
    files = {name: fingerprint_file(tmp_path / name) for name in ("model.safetensors", "config.json")}
    write_json(tmp_path / "base_model.json", {"source": "embedded", "folder": None, "files": files})
    with patch.object(models, "BASE_MODEL", tmp_path):
        models.refuse_changed_base()
        (tmp_path / "model.safetensors").write_bytes(b"moved on")
        with pytest.raises(ModelError, match=rf"{files['model.safetensors']} then, \w{{32}} now.*dvc repro -f -s prepare_base"):
            models.refuse_changed_base()
