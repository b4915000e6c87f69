"""Laws of the inspection: every row has its facts, rejected rows have none, nothing that was found is told, all is repeatable."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components.data_contract.inspection import (
    INSPECTED,
    OVERLAPS,
    bands_of,
    find_overlaps,
    index_of_questions,
    inspect_table,
    is_well_formed_answer,
)
from components.data_contract.near_duplicates import near_duplicate_groups
from components.data_contract.overlap import OverlapIndex

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
SECRET, EMAIL, CARD = "ghp_" + "aB3dE5fG7hJ9" * 3, "anna.kowalska@posteo.net", "4539 1488 0343 6467"
QUESTION = "A farmer has twelve hens and each hen lays two eggs every day. How many eggs does he sell in a week?"


def table_of(conversations: list[list[list[str]] | None], schema: str = "sharegpt") -> pa.Table:
    texts = [None if turns is None else json.dumps(turns, ensure_ascii=False) for turns in conversations]
    return pa.table({"conversation": pa.array(texts, pa.string()), "schema": pa.array([schema] * len(texts), pa.string())})


def facts_of(turns: list[list[str]] | None, schema: str = "sharegpt") -> dict[str, Any]:
    facts: dict[str, Any] = inspect_table(table_of([turns], schema)).to_pylist()[0]
    return facts


def test_the_facts_of_a_conversation() -> None:
    facts = facts_of([["system", "Be kind."], ["user", QUESTION], ["assistant", f"Ask {EMAIL} or {SECRET}.\ufffd"]])
    assert (facts["num_turns"], facts["prompt_characters"]) == (3, 8 + len(QUESTION))
    assert facts["target_characters"] == len(f"Ask {EMAIL} or {SECRET}.") + 1
    assert facts["language"] == "en"
    assert json.loads(facts["personal_data"]) == [["email", 2, 4]]
    assert json.loads(facts["secrets"]) == [["github_token", 2, len(f"Ask {EMAIL} or ")]]
    assert json.loads(facts["encoding_faults"]) == [["replacement_character", 2, facts["target_characters"] - 1]]
    assert facts["answer_is_well_formed"] is None
    assert len(facts["bands"]) == 128


def test_a_rejected_row_has_no_facts() -> None:
    facts = facts_of(None)
    assert facts.pop("bands") == bytes(128)
    assert facts.pop("answer_is_well_formed") is None
    assert set(facts.values()) == {0, "", "[]"}


def test_a_table_without_rows_keeps_its_columns() -> None:
    assert inspect_table(table_of([])).schema == INSPECTED
    assert find_overlaps(table_of([]), OverlapIndex([], [])).schema == OVERLAPS
    assert bands_of(inspect_table(table_of([]))["bands"]).shape == (0, 16)


@pytest.mark.parametrize("answer", ["2 + 2 = 4\n#### 4", "#### -1,234.50", "so\n#### $12", "x #### 1000000\n", "#### 20%"])
def test_a_number_after_four_hashes_ends_a_well_formed_answer(answer: str) -> None:
    assert is_well_formed_answer(answer)
    assert facts_of([["user", "q"], ["assistant", answer]], "gsm8k")["answer_is_well_formed"] is True


@pytest.mark.parametrize(
    "answer", ["4", "#### four", "#### 4 eggs", "#### 4\nmore", "#### 1\n#### 2", "####", "#### 1,2", "### 4"]
)
def test_any_other_answer_is_malformed(answer: str) -> None:
    assert not is_well_formed_answer(answer)
    assert facts_of([["user", "q"], ["assistant", answer]], "gsm8k")["answer_is_well_formed"] is False


def test_no_value_that_was_found_is_in_a_column_a_log_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    planted = f"{SECRET} {EMAIL} {CARD}"
    table = table_of([[["user", planted], ["assistant", f"password='{SECRET}'"]]])
    with caplog.at_level(logging.DEBUG):
        told = repr(inspect_table(table).drop_columns("bands").to_pylist()) + caplog.text
    broken = pa.table({"conversation": [f'[["user", "{planted}"'], "schema": ["sharegpt"]})
    with pytest.raises(ValueError, match="delimiter") as error:
        inspect_table(broken)
    told += str(error.value)
    for value in (SECRET, EMAIL, CARD):
        assert value not in told
        assert value[-8:] not in told


def test_findings_of_one_row_are_bounded() -> None:
    assert len(json.loads(facts_of([["user", "a\x00" * 10_000]])["encoding_faults"])) == 100


def test_the_same_rows_give_the_same_bytes_in_another_process() -> None:
    program = (
        "import json, pyarrow as pa; from hashlib import sha256; from components.data_contract.inspection import inspect_table;"
        "turns = json.dumps([['user', 'L’été à la plage \\u200bx 今天天气很好'], "
        "['assistant', 'Größe a@posteo.net \\ufffd\\x00']]); table = pa.table({'conversation': [turns], 'schema': ['x']});"
        "print(sha256(repr(inspect_table(table).to_pylist()).encode()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", program]
    started = [
        subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE) for seed in "01"
    ]
    first, second = (process.communicate()[0] for process in started)
    assert first == second != b""


def test_overlaps_name_the_items_of_both_sets_at_most_three() -> None:
    ood = OverlapIndex([f"ood:{number}" for number in range(5)], [QUESTION] * 5)
    test = OverlapIndex(["test:1"], ["Something else entirely."])
    table = table_of(
        [[["user", "Please: " + QUESTION.upper()], ["assistant", "something else, entirely"]], [["user", "no"]], None]
    )
    found = find_overlaps(table, ood, test).to_pylist()
    assert [json.loads(row["ood_overlaps"]) for row in found] == [["ood:0", "ood:1", "ood:2"], [], []]
    assert [json.loads(row["test_overlaps"]) for row in found] == [["test:1"], [], []]
    assert find_overlaps(table, ood)["test_overlaps"].to_pylist() == ["[]"] * 3


def test_the_index_of_test_rows_holds_their_questions_and_no_small_talk() -> None:
    more = "And what would he earn in a month if he sold every egg for fifteen cents at the market?"
    test = [
        [["system", "You are a kind and helpful assistant who answers every question as well as it can."], ["user", QUESTION]],
        [["user", "Tell me a good joke, please."], ["assistant", "No."], ["user", "Please go on with that one."]],
        [["user", "What is up?"], ["assistant", QUESTION[:60]], ["user", more]],
    ]
    index = index_of_questions(["t:1", "t:2", "t:3"], table_of(list(test))["conversation"].to_pylist())
    assert index.find(QUESTION) == ["t:1"]
    assert index.find("tell me a good joke please") == ["t:2"]
    assert index.find(f"so: {more}") == ["t:3"]
    assert index.find(test[0][0][1]) == index.find("Please go on with that one.") == index.find("What is up?") == []


def real_table(name: str) -> pa.Table:
    text = (SHARED / "train" / name).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)
    return table_of([turns_of(row) for row in rows], name.split("/")[0])


def turns_of(row: dict[str, Any]) -> list[list[str]]:
    if "conversations" in row:
        return [
            [turn["from"].replace("gpt", "assistant").replace("human", "user"), turn["value"]] for turn in row["conversations"]
        ]
    if "question" in row:
        return [["user", row["question"]], ["assistant", row["answer"]]]
    return [["user", f"{row['instruction']}\n\n{row['input']}".strip()], ["assistant", row["output"]]]


real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no real data beside the project (../shared/data is absent)")


@real_data
@pytest.mark.parametrize("name", ["alpaca/alpaca_data.json", "gsm8k/train.jsonl"])
def test_on_real_instructions_finds_are_rare_and_inspection_is_quick(name: str) -> None:
    table = real_table(name).slice(0, 2000)
    inspect_table(table.slice(0, 10))
    start = time.process_time()
    facts = inspect_table(table)
    microseconds = (time.process_time() - start) / len(table) * 1e6
    print(f"\n{name}: {microseconds:.0f} microseconds a row")
    for column in ("secrets", "personal_data", "encoding_faults"):
        assert sum(found != "[]" for found in facts[column].to_pylist()) <= 0.01 * len(table)
    languages = facts["language"].to_pylist()
    assert sum(language not in ("en", "") for language in languages) <= 0.002 * len(table)
    assert languages.count("") <= 0.03 * len(table)
    assert microseconds < 2000  # 300 on a quiet core; this guards against something quadratic


@real_data
def test_the_published_splits_of_gsm8k_do_not_overlap_and_a_planted_question_does() -> None:
    train = real_table("gsm8k/train.jsonl").slice(0, 1500)
    rows = [json.loads(line) for line in (SHARED / "eval_id" / "gsm8k" / "test.jsonl").read_text().splitlines()]
    test = table_of([[["user", row["question"]], ["assistant", row["answer"]]] for row in rows])
    index = index_of_questions([f"test.jsonl:{number}" for number in range(len(rows))], test["conversation"].to_pylist())
    assert set(find_overlaps(train, index)["ood_overlaps"].to_pylist()) == {"[]"}
    planted = table_of([[["user", f"Solve this: {row['question'].upper()}"]] for row in rows])
    found = [json.loads(names) for names in find_overlaps(planted, index)["ood_overlaps"].to_pylist()]
    assert all(f"test.jsonl:{number}" in names for number, names in enumerate(found))


@real_data
def test_near_duplicates_of_real_files_are_where_they_are_known_to_be() -> None:
    counts = {}
    for name in ("sharegpt/fastchat_dummy_conversation.json", "alpaca/alpaca_data.json"):
        table = real_table(name)
        texts = table["conversation"].to_pylist()
        bands = bands_of(inspect_table(table)["bands"])
        counts[name] = int(np.count_nonzero(near_duplicate_groups(bands, lambda row, texts=texts: json.loads(texts[row])) >= 0))
    print(f"\nnear duplicates: {counts}")
    assert counts["sharegpt/fastchat_dummy_conversation.json"] > 100
    assert counts["alpaca/alpaca_data.json"] < 20
