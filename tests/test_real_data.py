"""Published data and a published tiny model, where they lie beside the project (../shared/data); else these tests skip.

python -m pytest tests/test_real_data.py -s     # shows the table of rows in, used and quarantined
"""

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from components.data.chat_templates import apply_template
from components.data.held_out import list_ood_files, ood_texts
from components.data.json_rows import read_rows
from components.data.rendering import render
from components.data.schemas import parse_rows
from components.data.tokenized import SPLITS, read_split
from components.data_contract.overlap import OverlapIndex
from components.data_params import DataContractParams, DataParams
from components.data_preparation.inputs import held_out_index, sources_of_files
from components.data_preparation.prepare import prepare
from components.data_preparation.publish import count_rows, write_splits
from components.evaluation.evaluate import evaluate_sets
from components.evaluation.held_out_sets import name_ood_files
from components.evaluation.tasks import read_ood_set
from components.models import load_model, load_tokenizer
from components.params import EvaluationParams

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PARAMS = DataParams(source="files", chat_template="plain", max_length=512)
SOURCES = {
    "train/alpaca/alpaca_data.json": ("alpaca", 4000),
    "train/gsm8k/train.jsonl": ("gsm8k", 4500),
    "train/sharegpt/fastchat_dummy_conversation.json": ("sharegpt", 500),
    "train/sharegpt/mtbench101_sharegpt.json": ("sharegpt", 900),
    "train/sharegpt/oasst_en_sharegpt.json": ("sharegpt", 354),
    "train/sharegpt/sharegpt_zh.jsonl": ("sharegpt", 500),
    "train/alpaca_like/self_instruct_seed_tasks.jsonl": ("self_instruct", 175),
}
CONTRACT = DataContractParams(quarantine=("ood_overlap", "secret"))
NUM_SETS = 31
KINDS = {"icl": "choice", "math": "exact", "blimp": "choice", "text": "text", "bbh": "exact"}
EXACT = ("icl/lambada_openai", "icl/simple_arithmetic_withspaces")

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no real data beside the project (../shared/data is absent)")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = load_tokenizer(SHARED / "models" / "stories260K")
    apply_template(tokenizer, "plain")
    return tokenizer


@pytest.fixture(scope="module")
def index() -> OverlapIndex:
    return held_out_index(SHARED / "ood", 13)


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_of_a_published_file_is_used_or_quarantined_with_a_reason(
    name: str, tokenizer: Any, index: OverlapIndex, tmp_path: Path
) -> None:
    schema, num_rows = SOURCES[name]
    params = PARAMS.model_copy(update={"path": str(SHARED / name), "test_path": str(tmp_path)})
    prepared = prepare(sources_of_files(params, SHARED, tmp_path), tokenizer, params, CONTRACT, index, tmp_path / "work")
    counts = count_rows(prepared)
    num_used = sum(counts["rows_used"].values())
    print(f"\n{name}: {counts['rows_in']} in, {num_used} used ({counts['rows_cut']} cut), {counts['quarantined_by_kind']}")
    assert counts["rows_in"] == num_rows == num_used + counts["rows_quarantined"]
    assert counts["schemas"] == {schema: num_used}
    write_splits(prepared, tokenizer, tmp_path)
    for split in SPLITS:
        rows = read_split(tmp_path, split)
        assert len(rows) and all(len(row.input_ids) <= 512 and row.num_targets for row in rows)


def test_the_targets_of_published_rows_decode_to_their_answers(tokenizer: Any) -> None:
    for name in SOURCES:
        values = [value for _, value in islice(read_rows(SHARED / name), 40)]
        for schema, (messages, *_) in map(parse_rows, values):
            example = render(messages, tokenizer, 1 << 20)
            targets = [token for token, is_target in zip(example.input_ids, example.is_target, strict=True) if is_target]
            answers = [message["content"] for message in messages if message["role"] == "assistant"]
            said = tokenizer.decode(targets).split("</s>")[:-1]
            assert [text.strip() for text in said] == [answer.strip() for answer in answers], (name, schema)


def test_every_published_file_is_found_in_one_folder(tmp_path: Path) -> None:
    params = DataParams(source="files", path=str(SHARED / "train"), test_path=str(tmp_path))
    found = {source.file.name for source in sources_of_files(params, SHARED, tmp_path)}
    assert found == {name.removeprefix("train/") for name in SOURCES}


def test_every_held_out_set_is_parsed(tokenizer: Any) -> None:
    files = name_ood_files(SHARED / "ood")
    assert len(files) == NUM_SETS
    for name, file in files.items():
        items = read_ood_set(file, tokenizer, 512, 20)
        assert len(items) == 20, name
        assert {item.kind for item in items} == {"exact" if name in EXACT else KINDS[file.parent.name]}, name
        for item in items:
            assert 0 <= item.gold < len(item.rows) and (item.kind == "choice") == (len(item.rows) > 1)
            assert all(any(row.is_target) and len(row.input_ids) <= 512 and not row.is_target[0] for row in item.rows)


def test_the_published_model_scores_them_with_finite_figures(tokenizer: Any) -> None:
    model = load_model(SHARED / "models" / "stories260K")
    sets = {name: read_ood_set(file, tokenizer, 256, 2) for name, file in name_ood_files(SHARED / "ood").items()}
    results = evaluate_sets(model, model, sets, EvaluationParams(batch_tokens=2048))
    nlls = {name: result["metrics"]["nll"]["value"] for name, result in results.items()}
    assert all(0.0 < nll < 12.0 for nll in nlls.values())
    assert nlls["text/tinystories"] == min(nlls[name] for name in nlls if name.startswith("text/")), (
        "it was trained on these stories"
    )
    assert all(result["metrics"]["drift_kl"]["value"] == 0.0 for result in results.values())


def test_every_held_out_file_evaluates_with_all_that_the_report_reads(tokenizer: Any) -> None:
    model = load_model(SHARED / "models" / "stories260K")
    sets = {name: read_ood_set(file, tokenizer, 256, 3) for name, file in name_ood_files(SHARED / "ood").items()}
    results = evaluate_sets(model, model, sets, EvaluationParams(batch_tokens=2048), tokenizer=tokenizer)
    assert len(results) == NUM_SETS
    for name, result in results.items():
        assert (result["task"], result["num_items"]) == (sets[name][0].kind, 3), name
        assert all(math.isfinite(result["metrics"][metric]["value"]) for metric in ("nll", "accuracy")), name
        assert set(result["left_out"]) <= {"too_long"}, name


def test_the_published_model_answers_published_problems_and_instructions(tokenizer: Any, tmp_path: Path) -> None:
    """It knows no sums and follows no rules; what it says is cut, compared and counted all the same."""
    rules = ["length_constraints:number_words", "punctuation:no_comma"]
    row = {
        "key": 1,
        "prompt": "Tell me a story.",
        "instruction_id_list": rules,
        "kwargs": [{"num_words": 1, "relation": "at least"}, {}],
    }
    (tmp_path / "rules.jsonl").write_text(json.dumps(row), encoding="utf-8")
    model = load_model(SHARED / "models" / "stories260K")
    files = {"gsm8k": SHARED / "eval_id" / "gsm8k" / "test.jsonl", "rules": tmp_path / "rules.jsonl"}
    sets = {name: read_ood_set(file, tokenizer, 512, 6) for name, file in files.items()}
    results = evaluate_sets(model, model, sets, EvaluationParams(max_new_tokens=24), tokenizer=tokenizer)
    problems, instructions = (results[name]["metrics"] for name in files)
    assert (problems["exact_match"]["num"], problems["unfinished"]["num"]) == (6, 6)
    assert all(one["answer"] and one["num_generated"] <= 24 and one["expected"] for one in results["gsm8k"]["items"])
    assert instructions["accuracy"]["num"] == 1 and instructions["nll"]["value"] is None


def test_training_questions_are_not_held_out_and_held_out_ones_are_recognised() -> None:
    index = held_out_index(SHARED / "ood" / "math", 13)
    texts = [text for file in list_ood_files(SHARED / "ood" / "math") for text in ood_texts(file)]
    assert all(index.find(text) for text in texts[::100])
