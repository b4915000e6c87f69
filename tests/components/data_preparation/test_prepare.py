"""Laws of preparation: no row is lost, splits follow content alone, a row is judged by what it holds, a killed run goes on."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.artifacts import fingerprint_row
from components.data.embedded_splits import write_world
from components.data.file_blocks import MAX_ROW_BYTES
from components.data.tokenized import SPLITS, read_split
from components.data_contract.overlap import OverlapIndex
from components.data_params import DataContractParams
from components.data_preparation.publish import count_rows, write_splits
from components.data_preparation.quarantined_rows import quarantine_lines
from components.data_preparation.workers import VARIABLE
from components.models import build_word_tokenizer
from components.params import WorldParams

ROOT = Path(__file__).resolve().parents[3]
WORDS = "the quick brown fox jumps over a lazy dog and some other small animal of wood".split()
LONG_QUESTION = "the quick brown fox jumps over a lazy dog and some other small animal of wood"
Preparer = Callable[..., Any]
Writer = Callable[..., Path]


def rows_of(num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"instruction": " ".join(rng.choices(WORDS, k=8)), "output": " ".join(rng.choices(WORDS, k=5))} for _ in range(num_rows)
    ]


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("byte_level", "plain")


def places(prepared: Any) -> dict[str, str]:
    """Split of each used row by its name."""
    found = prepared.found
    return {prepared.rows.row_id(int(row)): SPLITS[found.split[row]] for row in np.flatnonzero(found.is_used)}


def quarantine(prepared: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in quarantine_lines(prepared)]


def written(prepared: Any, tokenizer: Any, folder: Path, *, with_laws: bool = False) -> dict[str, list[Any]]:
    folder.mkdir()
    write_splits(prepared, tokenizer, folder, with_laws=with_laws)
    return {split: list(read_split(folder, split)) for split in SPLITS}


def test_rows_in_are_rows_used_and_quarantined(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any, tmp_path: Path
) -> None:
    rng = random.Random(1)
    bad = ["{", json.dumps({"a": 1}), "[]", json.dumps({"instruction": "a", "output": "b </s> c"}), "NaN"]
    long = json.dumps({"instruction": "fox " * 600, "output": "dog"})
    rows = [*map(json.dumps, rows_of(60)), *bad, long]
    rng.shuffle(rows)
    prepared = prepare_file(write_lines(rows), tokenizer)
    counts = count_rows(prepared)
    assert (counts["rows_read"], counts["rows_in"], counts["rows_quarantined"]) == (66, 66, 6)
    assert sum(counts["rows_used"].values()) == 60
    in_file = {f"a.jsonl:{number}" for number, row in enumerate(rows, start=1) if row in (*bad, long)}
    assert {line["row"] for line in quarantine(prepared)} == in_file
    assert counts["quarantined_by_kind"] == {
        "control_token": 1,
        "not_an_object": 1,
        "too_long": 1,
        "unknown_schema": 1,
        "unreadable": 2,
    }
    rows_left = written(prepared, tokenizer, tmp_path / "out")
    assert counts["target_tokens"]["train"] == sum(sum(row.is_target) for row in rows_left["train"])
    assert {split: len(rows) for split, rows in rows_left.items()} == counts["rows_used"]


def test_a_row_keeps_its_split_when_rows_are_added(prepare_file: Preparer, write_lines: Writer, tokenizer: Any) -> None:
    few, more = rows_of(40), rows_of(40, seed=5)
    before = places(prepare_file(write_lines(few), tokenizer))
    after = places(prepare_file(write_lines([*more, *few]), tokenizer))
    assert {after[f"a.jsonl:{40 + number}"] == before[f"a.jsonl:{number}"] for number in range(1, 41)} == {True}
    assert set(before.values()) == set(SPLITS)


def test_copies_share_a_split_in_whatever_schema_and_spelling(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    rows: list[Any] = []
    for row in rows_of(30):
        question, answer = row["instruction"], row["output"]
        turns = [{"from": "human", "value": question.upper()}, {"from": "gpt", "value": f" {answer}\n"}]
        rows += [row, {"conversations": turns}, {"prompt": question.replace(" ", "  "), "completion": answer.title()}]
    prepared = prepare_file(write_lines(rows), tokenizer)
    found = places(prepared)
    for first in range(1, 90, 3):
        assert len({found[f"a.jsonl:{first + copy}"] for copy in range(3)}) == 1
    assert (prepared.found.repeats != -1).sum() == 60


def test_a_sample_is_part_of_every_larger_one(prepare_file: Preparer, write_lines: Writer, tokenizer: Any) -> None:
    file = write_lines(rows_of(100))
    samples = [set(places(prepare_file(file, tokenizer, max_examples=size))) for size in (10, 40, 1000)]
    assert [len(sample) for sample in samples] == [10, 40, 100]
    assert samples[0] < samples[1] < samples[2]


def test_rows_that_are_not_drawn_are_counted(prepare_file: Preparer, write_lines: Writer, tokenizer: Any) -> None:
    rows: list[Any] = rows_of(400)
    for index in range(0, 400, 10):
        rows[index] = {**rows[index], "output": index}
    counts = count_rows(prepare_file(write_lines(rows), tokenizer, max_examples=180))
    assert counts["rows_read"] == 400 == counts["rows_in"] + counts["rows_not_drawn"]
    assert sum(counts["rows_used"].values()) == 180
    assert counts["rows_quarantined"] == 20, "half of the 40 bad rows"


def test_a_row_too_long_is_quarantined_and_a_row_cut_is_counted(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any, tmp_path: Path
) -> None:
    turns = [{"role": role, "content": "fox " * 10} for role in ("user", "assistant")] * 3
    file = write_lines([{"messages": turns}, {"messages": turns[:2]}, {"prompt": "fox " * 300, "completion": "dog"}])
    prepared = prepare_file(file, tokenizer, max_length=60)
    [line] = quarantine(prepared)
    assert (line["row"], line["kind"], line["reason"].partition(" has ")[0]) == (
        "a.jsonl:3",
        "too_long",
        "the first exchange alone",
    )
    assert count_rows(prepared)["rows_cut"] == 1
    rows = [row for rows in written(prepared, tokenizer, tmp_path / "out").values() for row in rows]
    assert len(rows) == 2 and all(len(row.input_ids) <= 60 for row in rows)


def test_an_own_test_set_is_the_test_split_and_nothing_else_is(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    file, test = write_lines(rows_of(60)), write_lines(rows_of(9, seed=3), "test.jsonl")
    found = places(prepare_file(file, tokenizer, test_file=test))
    assert {name for name, split in found.items() if split == "test"} == {f"test.jsonl:{number}" for number in range(1, 10)}
    assert {"train", "validation"} == {split for name, split in found.items() if name.startswith("a.jsonl")}


def test_training_rows_that_ask_what_is_held_out_are_told_and_set_aside_where_asked_for(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    leak = {"instruction": f"Say: {LONG_QUESTION}?", "output": "yes"}
    asked_of_test = {"instruction": "who is it that wrote down all of these many words in a row today", "output": "she"}
    file = write_lines([*rows_of(20), leak, asked_of_test])
    test = write_lines([{**asked_of_test, "output": "he"}, *rows_of(3, seed=8)], "test.jsonl")
    ood = OverlapIndex(["svamp.json:7"], [LONG_QUESTION])
    contract = DataContractParams(quarantine=("ood_overlap", "test_overlap"))
    lines = quarantine(prepare_file(file, tokenizer, test_file=test, held_out=ood, contract=contract, validation_fraction=0.001))
    assert [(line["row"], line["kind"]) for line in lines] == [("a.jsonl:21", "ood_overlap"), ("a.jsonl:22", "test_overlap")]
    assert "svamp.json:7" in lines[0]["reason"] and "test.jsonl:1" in lines[1]["reason"]


def test_of_two_rows_that_are_alike_the_held_out_one_stays(prepare_file: Preparer, write_lines: Writer, tokenizer: Any) -> None:
    rows = rows_of(12)
    test = write_lines(rows[:3], "test.jsonl")
    contract = DataContractParams(quarantine=("duplicate",))
    prepared = prepare_file(write_lines(rows), tokenizer, test_file=test, contract=contract)
    lines = quarantine(prepared)
    assert [(line["row"], line["reason"]) for line in lines] == [
        (f"a.jsonl:{number}", f"repeats test.jsonl:{number}") for number in (1, 2, 3)
    ]


def test_a_row_is_set_aside_for_one_reason_and_a_secret_comes_first(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    key = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    row = {"prompt": f"use {key} please", "completion": "no"}
    contract = DataContractParams(quarantine=("duplicate", "secret"))
    lines = quarantine(prepare_file(write_lines([row, row, *rows_of(9)]), tokenizer, contract=contract))
    assert [(line["row"], line["kind"], line["raw"]) for line in lines] == [
        ("a.jsonl:1", "secret", None),
        ("a.jsonl:2", "secret", None),
    ]
    assert key not in json.dumps(lines)


def test_a_rejected_row_with_a_secret_is_not_written_a_second_time(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    key = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    lines = quarantine(prepare_file(write_lines([{"prompt": key}, {"prompt": "nothing"}]), tokenizer))
    assert [line["raw"] for line in lines] == [None, '{"prompt": "nothing"}']


def test_a_row_of_any_length_is_quarantined_with_its_length_and_never_held(
    prepare_file: Preparer, tokenizer: Any, tmp_path: Path
) -> None:
    num_bytes = MAX_ROW_BYTES + 100_000_000
    file = tmp_path / "long.jsonl"
    with file.open("wb") as out:
        out.write(b'{"prompt": "' + b"a" * 100_000)
        out.truncate(num_bytes)  # a hole in the file: it takes no room
        out.seek(num_bytes)
        out.write(b'\n{"prompt": "nothing"}')
    tracemalloc.start()
    (first, second) = quarantine(prepare_file(file, tokenizer))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first["line"], first["raw_bytes"]) == (1, num_bytes + 1)
    assert "raw_bytes" not in second
    assert peak < MAX_ROW_BYTES


def test_what_was_unpacked_is_kept_while_it_is_read(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any, tmp_path: Path
) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    for seed in (1, 2):
        packed.write_bytes(gzip.compress(write_lines(rows_of(20, seed)).read_bytes()))
        prepare_file(packed, tokenizer)
        (unpacked,) = tmp_path.rglob("unpacked/*")
        assert gzip.decompress(packed.read_bytes()) == unpacked.read_bytes()


SECRET = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
HIDDEN = {
    "behind a line break": {"conversations": [{"from": "human", "value": f"key:\n{SECRET}"}]},
    "in another key": {"instruction": "pw", "output": "", "note": f"\n{SECRET}"},
    "in escapes": json.dumps({"instruction": "", "output": "anna.mueller@gmx.de"}).replace("@", "\\u0040"),
    "in another key of a row that is parsed": {"instruction": "fox " * 600, "output": "dog", "note": SECRET},
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_secret_is_found_behind_the_escapes_of_a_row(
    name: str, prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    [line] = quarantine(prepare_file(write_lines([HIDDEN[name]]), tokenizer))
    assert line["raw"] is None


@pytest.mark.parametrize("kind", ["too_long", "control_token", "duplicate"])
def test_a_row_set_aside_after_parsing_stands_in_the_quarantine_as_in_the_file(
    kind: str, prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    rows = {
        "too_long": {"id": 7, "instruction": "fox " * 20_000, "output": "dog", "source": "web"},
        "control_token": {"id": 7, "instruction": "a </s> b", "output": "dog", "source": "web"},
        "duplicate": {"id": 7, "instruction": "fox", "output": "dog", "source": "web"},
    }
    first = {"instruction": "fox", "output": "dog"}
    contract = DataContractParams(quarantine=("duplicate",))
    [line] = quarantine(prepare_file(write_lines([first, rows[kind]]), tokenizer, contract=contract))
    whole = json.dumps(rows[kind])
    assert (line["kind"], line["raw"]) == (kind, whole[: 1 << 16])
    assert line.get("raw_bytes") == (len(whole) if kind == "too_long" else None)


def test_a_file_of_the_users_that_is_named_like_laws_is_none(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any, tmp_path: Path
) -> None:
    file = write_lines(rows_of(5))
    write_lines([{"a": 1}] * 5, "a.jsonl.laws.jsonl")
    rows = written(prepare_file(file, tokenizer, split="train"), tokenizer, tmp_path / "out")["train"]
    assert [row.laws for row in rows] == [None] * 5


def test_a_copy_of_a_row_that_is_set_aside_is_no_copy(prepare_file: Preparer, write_lines: Writer, tokenizer: Any) -> None:
    words = " ".join(WORDS * 4)
    private = {"prompt": f"{words} {SECRET}", "completion": "yes"}
    file = write_lines([private, {"prompt": words, "completion": "yes"}])
    contract = DataContractParams(quarantine=("secret", "near_duplicate"))
    assert [line["row"] for line in quarantine(prepare_file(file, tokenizer, contract=contract))] == ["a.jsonl:1"]


def test_a_question_that_many_test_rows_ask_may_not_be_trained_on(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any
) -> None:
    asked = [{"instruction": LONG_QUESTION, "output": f"answer {number}"} for number in range(12)]
    short = {"instruction": "Name the tallest mountain", "output": "Everest"}
    test = write_lines([*asked, short], "test.jsonl")
    rows = [*rows_of(10), {"instruction": LONG_QUESTION, "output": "other"}, {**short, "output": "K2"}]
    contract = DataContractParams(quarantine=("test_overlap",))
    prepared = prepare_file(write_lines(rows), tokenizer, test_file=test, contract=contract, validation_fraction=1e-9)
    assert [line["row"] for line in quarantine(prepared)] == ["a.jsonl:11", "a.jsonl:12"]


def test_a_fingerprint_is_of_tokens_and_marks(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any, tmp_path: Path
) -> None:
    rows = written(prepare_file(write_lines(rows_of(10)), tokenizer, split="train"), tokenizer, tmp_path / "out")["train"]
    assert len(rows) == 10
    assert all(row.fingerprint == fingerprint_row(row.input_ids, row.is_target) for row in rows)


@pytest.mark.parametrize("max_examples", [None, 7])
@pytest.mark.parametrize("max_length", [96, 16])
def test_each_target_of_the_embedded_world_has_its_law(
    max_examples: int | None, max_length: int, prepare_file: Preparer, tmp_path: Path
) -> None:
    from components.data.embedded_world import EmbeddedWorld

    world = WorldParams(num_train_examples=30, num_validation_examples=6, num_test_examples=6, num_ood_items_per_task=5)
    write_world(tmp_path, world)
    tokenizer = build_word_tokenizer(EmbeddedWorld(world).vocabulary(), 96)
    num_cut = 0
    for file in sorted((tmp_path / "raw" / "train").glob("*.json*")):
        if file.name.endswith(".laws.jsonl"):
            continue
        prepared = prepare_file(file, tokenizer, max_length=max_length, max_examples=max_examples)
        num_cut += count_rows(prepared)["rows_cut"]
        for row in [
            row for rows in written(prepared, tokenizer, tmp_path / f"out {file.name}", with_laws=True).values() for row in rows
        ]:
            laws = row.true_laws()
            targets = [token for token, is_target in zip(row.input_ids, row.is_target, strict=True) if is_target]
            assert laws is not None and len(laws) == len(targets)
            assert all(law[token] > 0.0 for law, token in zip(laws, targets, strict=True))
    assert (num_cut > 0) == (max_length == 16)


def test_the_number_of_processes_and_what_was_kept_change_no_byte(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = write_lines(rows_of(50))
    left = {}
    for name, processes in (("one", "1"), ("two", "2"), ("again", "1")):
        monkeypatch.setenv(VARIABLE, processes)
        work = tmp_path / f"work {'one' if name == 'again' else name}"
        written(prepare_file(file, tokenizer, work=work), tokenizer, tmp_path / name)
        left[name] = {
            str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()
        }
    assert left["one"] == left["two"] == left["again"]


def test_another_limit_asks_no_row_again(prepare_file: Preparer, write_lines: Writer, tokenizer: Any, tmp_path: Path) -> None:
    file, work = write_lines(rows_of(50)), tmp_path / "work"
    prepare_file(file, tokenizer, work=work)
    made = {path: path.stat().st_mtime_ns for path in work.glob("*.arrow")}
    assert len(made) == 4
    prepare_file(file, tokenizer, work=work, contract=DataContractParams(max_duplicate_fraction=0.5, languages=("en",)))
    assert {path: path.stat().st_mtime_ns for path in work.glob("*.arrow")} == made


KILLED = """
import os, signal, sys
from pathlib import Path
from components.data_preparation import passes, prepare as module
from components.data.source_files import SourceFile
from components.data_contract.overlap import OverlapIndex
from components.data_params import DataContractParams, DataParams
from components.models import load_tokenizer

folder, rows_file = Path(sys.argv[1]), Path(sys.argv[2])
passes.tokenise_table = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
source = module.Source(SourceFile(rows_file.name, rows_file, None, None, None, rows_file.name))
tokenizer, nothing = load_tokenizer(folder / "tokenizer"), OverlapIndex([], [])
module.prepare([source], tokenizer, DataParams(), DataContractParams(), nothing, folder / "work")
"""


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(
    prepare_file: Preparer, write_lines: Writer, tokenizer: Any, tmp_path: Path
) -> None:
    file = write_lines(rows_of(50))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    environ = {**os.environ, VARIABLE: "1"}
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(file)], cwd=ROOT, env=environ, check=False)
    assert child.returncode == -signal.SIGKILL
    parsed = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("parse-*.arrow")}
    assert parsed
    data = {"validation_fraction": 0.05, "test_fraction": 0.05}
    again = written(prepare_file(file, tokenizer, work=tmp_path / "work", **data), tokenizer, tmp_path / "again")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("parse-*.arrow")} == parsed
    shutil.rmtree(tmp_path / "work")
    assert again == written(prepare_file(file, tokenizer, work=tmp_path / "work", **data), tokenizer, tmp_path / "anew")
