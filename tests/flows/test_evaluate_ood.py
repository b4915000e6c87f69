"""The stage with a reference of the user's own: on rows without a true law, uncertainty is told from it and from nothing else.
And with a champion: it is evaluated like the others where it reads the same tokens, and its absence is no failure."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components import models
from components.artifacts import write_json
from components.data.tokenized import TokenizedRow, write_rows
from components.data_params import DataParams
from components.errors import ArtifactError, ModelError
from components.evaluation import base_text, evaluated_model, held_out_sets, item_table
from components.evaluation.item_table import read_evaluation
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
    monkeypatch.setattr(base_text, "BASE_TEXT", tmp_path / "base_text.json")
    write_json(tmp_path / "base_text.json", {"texts": [], "seed": 0, "base_fingerprint": "b"})
    monkeypatch.setattr(evaluated_model, "DATA", tmp_path / "data")
    write_json(tmp_path / "data/identity.json", {"tokenizer_fingerprint": "t"})
    monkeypatch.setattr(evaluated_model, "CHAMPION", tmp_path / "champion.json")
    monkeypatch.setattr(evaluated_model, "MODELS", tmp_path / "models")
    monkeypatch.setattr(item_table, "EVALUATIONS", tmp_path / "evaluations")
    monkeypatch.setattr(models, "base_vocabulary_size", lambda: VOCABULARY)
    monkeypatch.setattr(models, "load_base_model", lambda device: build_model())
    monkeypatch.setattr(models, "load_prepared_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(models, "weights_fingerprint", lambda folder: "base")
    return tmp_path


def run(preset: str = "base", seed: int = -1, *, max_length: int = 64, **section: Any) -> dict[str, Any]:
    given = {"data": DataParams(source="files", max_length=max_length), "token_scores": TokenScoresParams(**section)}
    return stage.evaluate_ood(preset, seed, **given, evaluation=EvaluationParams(), compute=ComputeParams(device="cpu"))  # type: ignore[arg-type]


def uncertainty(project: Path, **section: Any) -> Any:
    run(reference_path=str(project / "reference"), **section)
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


CHAMPION = {"name": "ballast", "version": "3", "model_fingerprint": "m", "tokenizer_fingerprint": "t", "uri": "models:/ballast/3"}


def champion(project: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any] | None, **config: Any) -> Any:
    """Evaluate the champion that `follow_champion` has `found`, whose weights the registry hands out as a folder."""
    write_json(project / "champion.json", {"champion": found})
    build_model(3, **config).save_pretrained(project / "fetched")
    fetched = SimpleNamespace(fetch_champion=lambda champion: project / "fetched" if champion == found else None)
    monkeypatch.setattr(stage, "import_module", {"components.registry": fetched}.__getitem__)
    run("champion")
    return read_evaluation("champion", folder=project / "evaluations")


def test_a_champion_is_evaluated_like_any_other_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = champion(project, monkeypatch, CHAMPION)
    assert {key: result[key] for key in ("model", "preset", "seed", "model_fingerprint")} == {
        "model": "champion",
        "preset": "champion",
        "seed": None,
        "model_fingerprint": "m",
    }
    assert result["sets"]["in_domain"]["metrics"]["drift_kl"]["value"] > 0 and result["sets"]["in_domain"]["num_items"] == 6


def test_where_nobody_is_champion_the_evaluation_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert champion(project, monkeypatch, None) == {"absent": "no version has the alias champion yet"}
    assert (project / "evaluations/champion.parquet").exists()


@pytest.mark.parametrize(
    ("found", "config", "why"),
    [
        (
            {**CHAMPION, "tokenizer_fingerprint": "other"},
            {},
            "version 3 of ballast, reads another tokenizer's tokens: fingerprint other",
        ),
        (CHAMPION, {"vocab_size": VOCABULARY + 1}, f"version 3 of ballast, has laws over {VOCABULARY + 1} tokens"),
        (CHAMPION, {"max_position_embeddings": 32}, "version 3 of ballast, reads 32 positions, data.max_length is 64"),
    ],
)
def test_a_champion_that_cannot_be_compared_is_absent_with_the_reason(
    found: dict[str, Any], config: dict[str, Any], why: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why in champion(project, monkeypatch, found, **config)["absent"]


def test_a_cell_that_was_not_trained_names_its_stage(project: Path) -> None:
    with pytest.raises(ArtifactError, match=r"models/sft-0 holds no model\. Make it with: dvc repro post_train@sft-0"):
        run("sft", 0)
