"""The stage with a reference of the user's own: on rows without a true law, uncertainty is told from it and from nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from components import models
from components.data.tokenized import TokenizedRow, write_rows
from components.data_params import DataParams
from components.errors import ModelError
from components.evaluation import held_out_sets
from components.params import ComputeParams, EvaluationParams, TokenScoresParams
from flows import evaluate_ood as stage
from tests.conftest import VOCABULARY, build_model, build_rows


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, test rows without laws, and a reference beside them; no OOD set."""
    tokenizer = models.build_word_tokenizer([f"w{number}" for number in range(VOCABULARY - 7)], 64)
    (tmp_path / "data").mkdir()
    for seed, split in enumerate(("validation", "test")):
        rows = [
            TokenizedRow(str(n), "s", "messages", row.fingerprint, row.input_ids, row.is_target)
            for n, row in enumerate(build_rows(6, seed=seed))
        ]
        write_rows(tmp_path / f"data/{split}.arrow", rows)
    build_model(5).save_pretrained(tmp_path / "reference")
    tokenizer.save_pretrained(tmp_path / "reference")
    monkeypatch.setattr(held_out_sets, "DATA", tmp_path / "data")
    monkeypatch.setattr(held_out_sets, "name_ood_files", lambda root: {})
    monkeypatch.setattr(stage, "EVALUATIONS", tmp_path / "evaluations")
    monkeypatch.setattr(models, "load_base_model", lambda device: build_model())
    monkeypatch.setattr(models, "load_prepared_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(models, "weights_fingerprint", lambda folder: "base")
    return tmp_path


def uncertainty(project: Path, **section: Any) -> Any:
    params = TokenScoresParams(reference_path=str(project / "reference"), **section)
    given = {"data": DataParams(source="files"), "evaluation": EvaluationParams(), "compute": ComputeParams(device="cpu")}
    stage.evaluate_ood("base", token_scores=params, **given)  # type: ignore[arg-type]
    return json.loads((project / "evaluations/base.json").read_text())["sets"]["in_domain"]["uncertainty"]


def test_a_local_reference_is_what_uncertainty_is_told_from_where_no_law_is_known(project: Path) -> None:
    found = uncertainty(project, reference="local")
    assert found["against"] == "reference" and found["num_tokens"] > 10
    reference, base = build_model(5).eval(), build_model().eval()
    excess = []
    for row in build_rows(6, seed=1):
        with torch.no_grad():
            laws = [one(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(1) for one in (base, reference)]
        places = [place for place, target in enumerate(row.is_target) if target]
        excess += [float((laws[1] - laws[0])[place - 1, row.input_ids[place]]) for place in places]
    assert found["mean_epistemic"] == pytest.approx(sum(excess) / len(excess), rel=1e-4)
    assert found["rank_correlation"]["entropy"]["epistemic"] is not None


@pytest.mark.parametrize("reference", ["none", "cross_fit"])
def test_without_one_nothing_is_told(project: Path, reference: str) -> None:
    assert uncertainty(project, reference=reference) is None


def test_a_reference_that_cannot_read_the_rows_is_refused(project: Path) -> None:
    build_model(5, max_position_embeddings=4).save_pretrained(project / "reference")
    with pytest.raises(ModelError, match=r"reads 4 positions, the longest row has \d+.*token_scores\.reference_path"):
        uncertainty(project, reference="local")
    models.build_word_tokenizer(["other"], 64).save_pretrained(project / "reference")
    with pytest.raises(ModelError, match=r"another tokenizer than the data"):
        uncertainty(project, reference="local")
