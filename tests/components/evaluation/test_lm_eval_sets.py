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


def add_task(folder: Path, name: str, **keys: Any) -> str:
    task = {"metric_list": [{"metric": "acc"}], "target_delimiter": "", "doc_to_text": "q", "task": name, "dataset_path": "json"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}}, "test_split": "test", **keys}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return name


def test_the_nll_is_that_of_the_right_option_however_a_task_names_it(model: Any, tokenizer: Any, folder: Path) -> None:
    kind = {"output_type": "multiple_choice", "doc_to_choice": "options"}
    as_text = add_task(folder, "as_text", **kind, doc_to_target="{{options[right]}}")
    found = run(model, tokenizer, folder, "own_choose", as_text)
    assert [item["nll_sum"] for item in found["as_text"]["items"]] == [item["nll_sum"] for item in found["own_choose"]["items"]]
    assert len({item["nll_sum"] for item in found["as_text"]["items"]}) == 8


def test_where_each_option_has_its_own_context_code_may_tell_the_right_one(model: Any, tokenizer: Any, folder: Path) -> None:
    code = "def place(d): return d['right']\ndef said(d): return d['a']\ndef contexts(d): return [d['q'], d['q'] + ' w7']\n"
    (folder / "own_code.py").write_text(code)
    add_task(
        folder, "by_code", output_type="multiple_choice", doc_to_text="@place", doc_to_target="@said", doc_to_choice="@contexts"
    )
    file = folder / "by_code.yaml"
    text = file.read_text()
    for name in ("place", "said", "contexts"):
        text = text.replace(f"'@{name}'", f"!function own_code.{name}")
    file.write_text(text)
    complete = add_task(
        folder, "right_one", output_type="loglikelihood", doc_to_text="{{q}}{{' w7' if right else ''}}", doc_to_target="a"
    )
    found = run(model, tokenizer, folder, "by_code", complete)
    nlls = {name: [item["nll_sum"] for item in found[name]["items"]] for name in ("by_code", "right_one")}
    assert nlls["by_code"] == pytest.approx(nlls["right_one"], abs=1e-4)


def test_where_several_options_are_right_there_is_no_nll(model: Any, tokenizer: Any, folder: Path) -> None:
    name = add_task(folder, "both", output_type="multiple_choice", doc_to_choice="options", doc_to_target="{{[0, 1]}}")
    found = run(model, tokenizer, folder, name)["both"]["metrics"]
    assert found["nll"]["value"] is None and found["accuracy"]["value"] == 1


def test_a_task_that_reads_its_answers_in_two_ways_counts_each_document_once(model: Any, tokenizer: Any, folder: Path) -> None:
    filters = [
        {"name": "strict", "filter": [{"function": "take_first"}]},
        {"name": "flexible", "filter": [{"function": "regex", "regex_pattern": "w(9)"}, {"function": "take_first"}]},
    ]
    found = run(model, tokenizer, folder, add_task(folder, "twice", **KINDS["answer"], filter_list=filters), "own_answer")
    assert found["twice"]["num_items"] == 8
    answers = {name: [item["answer"] for item in one["items"]] for name, one in found.items()}
    assert answers["twice"] == answers["own_answer"]


def test_an_answer_longer_than_the_model_reads_is_refused_before_anything_runs(model: Any, tokenizer: Any, folder: Path) -> None:
    kind = {**KINDS["answer"], "generation_kwargs": {"until": ["w9"], "max_gen_toks": 64}}
    with pytest.raises(ParamsError, match=r"endless lets an answer have 64 tokens, the model reads 64 in all\. Lower"):
        run(model, tokenizer, folder, "own_choose", add_task(folder, "endless", **kind))


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
