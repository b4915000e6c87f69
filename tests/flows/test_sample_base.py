"""The stage leaves what the base wrote, the same for the same seed; none where none is wanted."""

import json
from pathlib import Path
from typing import Any

import pytest

from components import models
from components.params import BaseTextParams, ComputeParams
from flows import sample_base as stage
from tests.conftest import VOCABULARY, build_model


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **params: Any) -> dict[str, Any]:
    tokenizer = models.build_word_tokenizer([f"w{number}" for number in range(VOCABULARY - 7)], 64)
    monkeypatch.setattr(models, "load_base_model", lambda device: build_model())
    monkeypatch.setattr(models, "load_base_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(models, "weights_fingerprint", lambda folder: "base")
    monkeypatch.setattr(stage, "BASE_TEXT", tmp_path / "base_text.json")
    stage.sample_base(base_text=BaseTextParams(**params), compute=ComputeParams(device="cpu"))
    kept: dict[str, Any] = json.loads((tmp_path / "base_text.json").read_text())
    return kept


def test_the_texts_are_kept_with_their_seed_and_their_author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run(tmp_path, monkeypatch, num_texts=3, num_tokens=9, seed=5)
    assert (kept["seed"], kept["base_fingerprint"], [len(text) for text in kept["texts"]]) == (5, "base", [9, 9, 9])
    assert run(tmp_path, monkeypatch, num_texts=3, num_tokens=9, seed=5) == kept
    assert run(tmp_path, monkeypatch, num_texts=3, num_tokens=9, seed=6)["texts"] != kept["texts"]
    assert run(tmp_path, monkeypatch, num_texts=0)["texts"] == []
