"""What `compare` asks for before it works."""

import json
from pathlib import Path

import pytest

from components.errors import ArtifactError
from components.params import load_params
from flows import compare as flow


def test_a_missing_probe_names_the_stage_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVALUATIONS", "CURVES", "PROBES"):
        monkeypatch.setattr(flow, name, tmp_path / name)
        (tmp_path / name).mkdir()
    for model in ("base", "sft-0"):
        (tmp_path / "EVALUATIONS" / f"{model}.json").write_text(json.dumps({}))
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
