"""The code of docs/use-without-the-pipeline.md is executed as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import ROOT
from tests.conftest import PAD, build_model, build_rows

PAGE = ROOT / "docs" / "use-without-the-pipeline.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def given() -> dict[str, Any]:
    rows = build_rows(12)
    labels = [[t if wanted else -100 for t, wanted in zip(row.input_ids, row.is_target, strict=True)] for row in rows]
    examples = [{"input_ids": row.input_ids, "labels": own} for row, own in zip(rows, labels, strict=True)]
    return {"model": build_model(), "examples": examples, "pad_token_id": PAD}


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("components.artifacts.WORK", tmp_path / ".work")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_the_blocks_for_a_plain_trainer_train() -> None:
    online, cached, _ = blocks()
    names = given()
    exec(compile(online, str(PAGE), "exec"), names)
    assert names["trainer"].state.global_step == 3 and names["loss"].threshold.value is not None
    names |= {"model": build_model()}
    exec(compile(cached, str(PAGE), "exec"), names)
    assert names["trainer"].state.global_step == 3 and names["loss"].cache is not None


def test_the_block_for_trl_trains() -> None:
    pytest.importorskip("trl", reason="trl is not in the lock: pip install trl==1.16.0 into an environment of its own")
    from components.models import build_word_tokenizer
    from examples.trl_sft import WORDS, conversations
    from examples.trl_sft import build_model as build_trl_model

    tokenizer = build_word_tokenizer(WORDS, max_length=64)
    names = {"model": build_trl_model(tokenizer), "tokenizer": tokenizer, "dataset": conversations(32)}
    imports = blocks()[0].partition("\nloss = ")[0]
    exec(compile(imports + blocks()[2], str(PAGE), "exec"), names)
    assert names["trainer"].state.global_step == 3
