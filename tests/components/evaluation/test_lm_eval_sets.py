"""Laws of the harness's tasks as OOD sets: every kind gives items, and what cannot be run says why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from components.errors import DataError, InputError, ParamsError
from components.evaluation import lm_eval_run, lm_eval_sets
from components.params import EvaluationParams
from tests.components.evaluation.test_lm_eval_export import model, tokenizer

__all__ = ["model", "tokenizer"]
CPU = torch.device("cpu")
DOCUMENTS = [{"q": f"w{n} w{n + 1}", "a": f" w{n + 2}", "options": [" w1", " w2 w3"], "right": n % 2} for n in range(8)]
KINDS: dict[str, dict[str, Any]] = {
    "choose": {"output_type": "multiple_choice", "doc_to_text": "q", "doc_to_choice": "options", "doc_to_target": "right"},
    "complete": {"output_type": "loglikelihood", "doc_to_text": "q", "doc_to_target": "a"},
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "q",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["w9"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "q",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, kind in KINDS.items():
        task = {"metric_list": [{"metric": "acc"}], "target_delimiter": "", **kind, "task": f"own_{name}", "dataset_path": "json"}
        task |= {"dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def run(model: Any, tokenizer: Any, folder: Path, *tasks: str, **changes: Any) -> dict[str, dict[str, Any]]:
    params = EvaluationParams(lm_eval_tasks=tasks, lm_eval_tasks_path=str(folder), **changes)
    return lm_eval_sets.evaluate_lm_eval(model, tokenizer, params, CPU)


def test_every_kind_of_task_gives_a_result_for_each_document(model: Any, tokenizer: Any, folder: Path) -> None:
    found = run(model, tokenizer, folder, *(f"own_{name}" for name in KINDS))
    assert set(found) == {f"own_{name}" for name in KINDS}
    for name, one in found.items():
        assert (one["task"], one["num_items"], len(one["items"])) == ("lm_eval", 8, 8), name
        assert len({item["item_id"] for item in one["items"]}) == 8
    metrics = {
        name: {key for key, figure in one["metrics"].items() if figure["value"] is not None} for name, one in found.items()
    }
    assert metrics["own_choose"] == metrics["own_complete"] == {"accuracy", "nll"}
    assert metrics["own_answer"] == {"accuracy", "exact_match"} and metrics["own_read"] == {"nll"}
    assert all(item["num_tokens"] == (1 if n % 2 == 0 else 2) for n, item in enumerate(found["own_choose"]["items"]))


def test_the_first_documents_are_taken(model: Any, tokenizer: Any, folder: Path) -> None:
    assert run(model, tokenizer, folder, "own_choose", max_items_per_set=3)["own_choose"]["num_items"] == 3


def test_an_unknown_task_is_named_with_its_neighbours(model: Any, tokenizer: Any, folder: Path) -> None:
    with pytest.raises(ParamsError, match=r"no task 'arc_eazy'; it has .*arc_easy"):
        run(model, tokenizer, folder, "arc_eazy")


def test_a_data_set_that_cannot_be_loaded_says_what_to_do(model: Any, tokenizer: Any, folder: Path) -> None:
    (folder / "documents.jsonl").unlink()
    with pytest.raises(DataError, match=r"own_choose.*cannot be loaded.*docs/lm-eval\.md"):
        run(model, tokenizer, folder, "own_choose")


def test_without_the_harness_the_command_that_installs_it_is_named(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.models.huggingface", None)
    with pytest.raises(InputError, match="make install-lm-eval"):
        lm_eval_run.open_harness(model, tokenizer)
