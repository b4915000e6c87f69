"""What `compare` asks for before it works."""

import json
from pathlib import Path

import pytest

from components.errors import ArtifactError
from components.evaluation import item_table
from components.evaluation.item_table import write_evaluation
from components.params import load_params
from flows import compare as flow


def test_a_missing_probe_names_the_stage_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CURVES", "PROBES"):
        monkeypatch.setattr(flow, name, tmp_path / name)
        (tmp_path / name).mkdir()
    monkeypatch.setattr(flow, "CHAMPION", tmp_path / "champion.json")
    (tmp_path / "champion.json").write_text(json.dumps({"champion": None}))
    monkeypatch.setattr(item_table, "EVALUATIONS", tmp_path)
    for model in ("base", "sft-0"):
        write_evaluation(model, {"model": model, "sets": {}})
    (tmp_path / "CURVES" / "sft-0.csv").write_text("step,nll\n")
    params = load_params()
    with pytest.raises(ArtifactError, match=r"sft-0\.json is missing\. Make it with: dvc repro post_train"):
        flow.compare(
            presets=("sft",),
            seeds=(0,),
            objective=params.objective,
            comparison=params.comparison,
            registration=params.registration,
        )
