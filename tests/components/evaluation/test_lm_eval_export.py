"""Laws of the harness beside us: on the same items the same nll and the same verdicts, for every kind of set."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from components.evaluation.evaluate import evaluate_sets
from components.evaluation.lm_eval_export import export_sets, task_name
from components.evaluation.lm_eval_run import open_harness, run_tasks
from components.evaluation.lm_eval_sets import item_result
from components.evaluation.tasks import read_ood_set
from components.params import EvaluationParams

MAX_LENGTH = 64
WORDS = [f"w{number}" for number in range(30)]


def words(generator: torch.Generator, count: int) -> str:
    return " ".join(WORDS[index] for index in torch.randint(0, len(WORDS), (count,), generator=generator).tolist())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", "Sentence:", *WORDS])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH, bos_token_id=0, eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, generator = tmp_path_factory.mktemp("ood"), torch.Generator().manual_seed(1)
    say = lambda count: words(generator, count)  # noqa: E731
    rows = {
        "choices": [{"query": say(9), "choices": [say(1 + n % 3), say(2), say(3)], "gold": n % 3} for n in range(80)],
        "winograd": [{"context_options": [say(5), say(6)], "continuation": say(3), "gold": n % 2} for n in range(60)],
        "pairs": [{"sentence_good": say(6), "sentence_bad": say(6)} for _ in range(80)],
        "completion": [{"context": say(12), "continuation": say(1)} for _ in range(60)],
        "sums": [{"Body": say(7), "Question": say(4), "Answer": say(1)} for _ in range(40)],
    }
    for name, one in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one))
    (folder / "text.txt").write_text(say(600))
    return {file.stem: file for file in sorted(folder.iterdir())}


def test_ours_and_the_harness_s_figures_are_equal_item_by_item(
    model: Any, tokenizer: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    exported = export_sets(files, tmp_path, tokenizer, MAX_LENGTH, 500)
    assert not [one.left_out for one in exported.values() if one.left_out]
    harness = open_harness(model, tokenizer)
    theirs = run_tasks(harness, [one.task for one in exported.values()], tmp_path)
    num_compared = 0
    for name, one in exported.items():
        items = read_ood_set(files[name], tokenizer, MAX_LENGTH, 500)
        assert [item.item_id for item in items] == one.item_ids
        ours = evaluate_sets(model, model, {name: items}, EvaluationParams())[name]["items"]
        for mine, sample in zip(ours, theirs[one.task], strict=True):
            row = item_result(one.task, sample, harness)
            assert row.num_tokens == mine["num_tokens"]
            assert abs(row.nll_sum - mine["nll_sum"]) <= 1e-4 * row.num_tokens
            if name != "text":
                assert row.num_correct == mine["num_correct"]
            num_compared += 1
    assert num_compared >= 320


def test_the_exported_task_is_yaml_that_names_its_file(tokenizer: Any, files: dict[str, Path], tmp_path: Path) -> None:
    export_sets({"a/choices": files["choices"]}, tmp_path, tokenizer, MAX_LENGTH, 5)
    task = yaml.safe_load((tmp_path / f"{task_name('a/choices')}.yaml").read_text())
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    assert data.is_absolute() and len(data.read_text().splitlines()) == 5
    assert task["output_type"] == "multiple_choice" and task["target_delimiter"] == ""


def test_what_the_harness_cannot_ask_is_counted(tokenizer: Any, tmp_path: Path) -> None:
    long, unknown = " ".join(["w1"] * 100), "w1 unheard"
    rows = [{"context": long, "continuation": "w2"}, {"context": "w1", "continuation": unknown}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    files = {"c": tmp_path / "c.jsonl", "m": tmp_path / "m.jsonl"}
    exported = export_sets(files, tmp_path / "tasks", tokenizer, MAX_LENGTH, 500)
    assert exported["c"].left_out == {"cut_to_fit": 1, "lossy": 1} and not exported["c"].item_ids
    assert exported["m"].left_out == {"answered_in_the_chat_template": 1}
