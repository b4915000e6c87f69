"""Laws of the embedded world: its laws are laws, its new tables are news, its splits are apart, its seed is everything."""

import math
import random
from collections.abc import Iterator
from itertools import chain, islice

import pytest

from components.data.embedded_world import (
    BROAD_TASKS,
    END_OF_TURN,
    SCHEMAS,
    EmbeddedWorld,
    Example,
    Turn,
    draw_ood_sets,
    draw_splits,
)
from components.params import WorldParams

SMALL = WorldParams(
    num_symbols=10, num_train_examples=60, num_validation_examples=15, num_test_examples=15, num_ood_items_per_task=12
)


def drawn(params: WorldParams) -> tuple[dict[str, list[Example]], dict[str, list[Example]], list[Example]]:
    """Splits, OOD sets and some of the pre-training conversations."""
    world = EmbeddedWorld(params)
    return draw_splits(world), draw_ood_sets(world), list(islice(world.broad_conversations(random.Random(0)), 200))


def all_turns(params: WorldParams) -> Iterator[Turn]:
    splits, ood, pretraining = drawn(params)
    return (turn for example in chain(*splits.values(), *ood.values(), pretraining) for turn in example.turns)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_law_is_a_law_and_allows_the_word_that_was_said(seed: int) -> None:
    for turn in all_turns(SMALL.model_copy(update={"seed": seed})):
        words = [*turn.answer.split(), END_OF_TURN]
        assert len(turn.laws) == len(words)
        for word, law in zip(words, turn.laws, strict=True):
            assert math.isclose(sum(law.values()), 1.0, abs_tol=1e-12)
            assert all(probability > 0.0 for probability in law.values())
            assert law[word] > 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_word_is_in_the_vocabulary_and_each_word_once(seed: int) -> None:
    params = SMALL.model_copy(update={"seed": seed})
    vocabulary = EmbeddedWorld(params).vocabulary()
    assert len(set(vocabulary)) == len(vocabulary)
    for turn in all_turns(params):
        assert set(turn.question.split()) | set(turn.answer.split()) <= set(vocabulary)
        assert set().union(*turn.laws) <= {*vocabulary, END_OF_TURN}


@pytest.mark.parametrize("seed", range(5))
def test_the_new_tables_are_news_to_the_base(seed: int) -> None:
    world = EmbeddedWorld(SMALL.model_copy(update={"seed": seed}))
    assert all(world.new_prices[good] != world.prices[good] for good in world.prices)
    assert sorted(world.cipher.values()) == sorted(world.symbols)
    assert all(code != symbol for symbol, code in world.cipher.items())


@pytest.mark.parametrize("seed", [0, 1])
def test_no_prompt_stands_in_two_splits_or_twice_in_one(seed: int) -> None:
    splits, ood, _ = drawn(SMALL.model_copy(update={"seed": seed}))
    keys = [example.prompt_key for example in chain(*splits.values())]
    assert len(set(keys)) == len(keys)
    questions = {turn.question for example in chain(*splits.values()) for turn in example.turns}
    assert not questions & {example.prompt_key for example in chain(*ood.values())}


def test_sizes_and_schemas_are_those_asked_for() -> None:
    splits, ood, _ = drawn(SMALL)
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 60, "validation": 15, "test": 15}
    for examples in splits.values():
        counts = [sum(example.schema == schema for example in examples) for schema in SCHEMAS]
        assert max(counts) - min(counts) <= 1
    assert list(ood) == list(BROAD_TASKS)
    assert all(len(examples) == 12 for examples in ood.values())
    assert all(len({example.prompt_key for example in examples}) == 12 for examples in ood.values())


def test_gsm8k_answers_end_with_their_number() -> None:
    for example in chain(*drawn(SMALL)[0].values()):
        if example.schema == "gsm8k":
            assert example.turns[-1].answer.rpartition("#### ")[2].isdigit()


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    assert drawn(SMALL) == drawn(SMALL)
    other = SMALL.model_copy(update={"seed": 7})
    assert drawn(SMALL)[0] != drawn(other)[0]
    assert EmbeddedWorld(SMALL).cipher != EmbeddedWorld(other).cipher


def test_more_held_out_items_keep_those_that_were_there() -> None:
    few, many = drawn(SMALL)[1], drawn(SMALL.model_copy(update={"num_ood_items_per_task": 20}))[1]
    assert all(many[task][:12] == few[task] for task in few)


def test_the_answers_obey_their_law_in_the_long_run() -> None:
    openings: dict[str, int] = {}
    turns = [
        turn for example in islice(EmbeddedWorld(SMALL).broad_conversations(random.Random(3)), 3000) for turn in example.turns
    ]
    for turn in turns:
        word = turn.answer.split()[0]
        openings[word] = openings.get(word, 0) + 1
    for word, probability in turns[0].laws[0].items():
        assert openings[word] / len(turns) == pytest.approx(probability, abs=0.03)
