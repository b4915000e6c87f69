"""Laws of the embedded files: they are the published schemas, their laws belong to them row by row, same seed same bytes."""

import json
import random
from pathlib import Path

import pytest

from components.artifacts import fingerprint_file
from components.data.embedded_files import FILE_NAMES, LAWS_SUFFIX, messages_of, read_laws, write_examples
from components.data.embedded_splits import write_world
from components.data.embedded_world import SCHEMAS, EmbeddedWorld
from components.data.held_out import list_ood_files, read_ood_items
from components.data.json_rows import read_rows
from components.data.schemas import parse_row
from components.data.tokenized import SPLITS
from components.params import WorldParams

SMALL = WorldParams(num_train_examples=30, num_validation_examples=6, num_test_examples=6, num_ood_items_per_task=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, SMALL)
    return folder


def data_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if not file.name.endswith(LAWS_SUFFIX)]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_is_written_in_a_schema_is_read_back_as_the_same_conversation(schema: str, tmp_path: Path) -> None:
    world, rng = EmbeddedWorld(SMALL), random.Random(1)
    examples = [world.new_example(schema, rng) for _ in range(20)]
    write_examples(tmp_path, examples)
    [file] = data_files(tmp_path)
    found = [parse_row(row) for _, row in read_rows(file)]
    assert found == [(schema, messages_of(example)) for example in examples]
    assert read_laws(file) == [[law for turn in example.turns for law in turn.laws] for example in examples]


def test_every_split_holds_every_schema_and_a_law_for_each_answered_word(folder: Path) -> None:
    for split in SPLITS:
        files = data_files(folder / "raw" / split)
        assert {file.name for file in files} == {FILE_NAMES[schema] for schema in SCHEMAS}
        for file in files:
            laws = read_laws(file)
            assert laws is not None
            for (_, row), of_row in zip(read_rows(file), laws, strict=True):
                answers = [message["content"] for message in parse_row(row)[1] if message["role"] == "assistant"]
                assert len(of_row) == sum(len(answer.split()) + 1 for answer in answers)


def test_there_is_one_held_out_set_for_each_broad_task(folder: Path) -> None:
    files = list_ood_files(folder / "ood")
    assert len(files) == 6
    assert all(len(read_ood_items(file)) == 5 == len(read_laws(file) or ()) for file in files)


def test_real_data_have_no_laws(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "a", "completion": "b"}]), encoding="utf-8")
    assert read_laws(tmp_path / "a.json") is None


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_world(tmp_path, SMALL)
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file())
    assert [fingerprint_file(folder / file) for file in files] == [fingerprint_file(tmp_path / file) for file in files]
