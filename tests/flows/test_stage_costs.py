"""Laws of a stage's costs: only what dvc.yaml declares is written, only the first rank writes, and only `compare` reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.artifacts import ROOT
from flows import stage_runner

PIPELINE = """
    outs:
      - artifacts/costs/cache_teacher.json
      - artifacts/costs/evaluate_ood-base.json
      - artifacts/costs/post_train-${item.preset}-${item.seed}.json
"""


@pytest.mark.parametrize(
    ("name", "is_declared"),
    [
        ("cache_teacher", True),
        ("evaluate_ood-base", True),
        ("post_train-sft_kl-2", True),
        ("post_train", False),
        ("evaluate_ood-champion", False),
        ("prepare_data", False),
        ("cache_teacher-x", False),
    ],
)
def test_a_cell_has_costs_where_the_pipeline_declares_them(name: str, is_declared: bool) -> None:
    assert stage_runner.declares_costs(name, PIPELINE) == is_declared


def test_whole_numbers_are_amounts_and_nothing_else_is() -> None:
    result = {"tokens": 5, "nll": 0.3, "columns": "none", "is_whole": True}
    assert stage_runner.amounts(result) == {"tokens": 5}


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_first_rank_tells(rank: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_runner, "COSTS", tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    stage_runner.write_costs("cache_teacher", [], {"work_seconds": 1.5})
    stage_runner.write_costs("prepare_base", [], {"work_seconds": 1.5})
    assert [file.name for file in tmp_path.iterdir()] == ([] if rank == "1" else ["cache_teacher.json"])


def test_a_run_leaves_seconds_memory_and_amounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_runner, "COSTS", tmp_path / "costs")
    monkeypatch.setattr(stage_runner, "WORK", tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("RANK", raising=False)

    def score_tokens() -> dict[str, Any]:
        return {"tokens": 12, "columns": "none"}

    assert stage_runner.run_here(score_tokens, []) == 0
    costs = json.loads((tmp_path / "costs/score_tokens.json").read_text())
    assert costs["tokens"] == 12 and costs["work_seconds"] >= 0 and costs["peak_bytes"] > 1_000_000 and "columns" not in costs


def test_only_the_comparison_depends_on_costs() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    readers = {name for name, stage in stages.items() if any(str(dep).startswith("artifacts/costs") for dep in stage["deps"])}
    assert readers == {"compare"}
    makers = {name for name, stage in stages.items() if any("artifacts/costs/" in str(out) for out in stage["outs"])}
    assert makers >= {"cache_teacher", "score_tokens", "post_train", "evaluate_base", "evaluate_ood"}
