"""Laws of the split: content alone decides, copies stay together, neither fraction moves the other's rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from components.data.tokenized import SPLITS
from components.data_preparation.sampling import SourceRows, draw_rows
from components.data_preparation.splits import TEST, TRAIN, VALIDATION, split_by_hash

HASHES = arrays.arrays(np.uint64, st.integers(0, 40))
FRACTIONS = st.floats(0.0, 0.499)


def many(num_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num_rows, dtype=np.uint64)


@given(HASHES, HASHES, FRACTIONS, FRACTIONS, st.randoms())
def test_rows_keep_their_split_when_rows_are_added_or_reordered(old, new, test, validation, random) -> None:
    known = dict(zip(old.tolist(), split_by_hash(old, test, validation).tolist(), strict=True))
    order = list(range(len(old) + len(new)))
    random.shuffle(order)
    both = np.concatenate([old, new])[order]
    again = split_by_hash(both, test, validation)
    assert all(known.get(content, split) == split for content, split in zip(both.tolist(), again.tolist(), strict=True))


@given(HASHES, FRACTIONS, FRACTIONS)
def test_copies_of_a_row_share_its_split(content_hash, test, validation) -> None:
    once, again = np.split(split_by_hash(np.concatenate([content_hash, content_hash]), test, validation), 2)
    assert (once == again).all() and once.dtype == np.int8


@given(HASHES, FRACTIONS, FRACTIONS, FRACTIONS)
def test_neither_fraction_moves_rows_of_the_other_split(content_hash, test, validation, other) -> None:
    split = split_by_hash(content_hash, test, validation)
    assert ((split == VALIDATION) == (split_by_hash(content_hash, other, validation) == VALIDATION)).all()
    assert ((split == TEST) == (split_by_hash(content_hash, test, other) == TEST)).all()


@given(HASHES, FRACTIONS, FRACTIONS, FRACTIONS)
def test_a_larger_fraction_only_takes_rows_from_train(content_hash, test, first, second) -> None:
    small, large = (split_by_hash(content_hash, test, fraction) for fraction in sorted((first, second)))
    assert set(small[small != large].tolist()) <= {TRAIN}


@pytest.mark.parametrize("contents", [many(200_000), np.arange(200_000, dtype=np.uint64), many(200_000) << np.uint64(40)])
def test_the_fractions_are_kept_whatever_the_hashes_look_like(contents) -> None:
    shares = np.bincount(split_by_hash(contents, 0.05, 0.1), minlength=3) / len(contents)
    assert shares == pytest.approx([0.85, 0.1, 0.05], abs=4 * np.sqrt(0.1 * 0.9 / 200_000) + 1e-4)


def test_without_fractions_every_row_is_a_train_row_and_the_numbers_have_names() -> None:
    assert (split_by_hash(many(1000), 0.0, 0.0) == TRAIN).all()
    assert [SPLITS[number] for number in (TRAIN, VALIDATION, TEST)] == ["train", "validation", "test"]


def test_the_split_of_a_row_is_the_one_it_had_when_this_was_written() -> None:
    """Another salt or another mix would move rows between train and test of everybody's data."""
    recorded = [0, 1, 2, 2, 0, 2, 2, 1, 0, 2, 2, 0, 0, 0, 2, 1, 1, 1, 1, 2, 2, 1, 0, 2]
    assert split_by_hash(np.arange(24, dtype=np.uint64), 0.25, 0.25).tolist() == recorded


def test_a_sample_has_the_split_fractions_of_the_whole() -> None:
    """With one salt for both, a sample of a twentieth would lie in one split."""
    contents = many(200_000)
    source = SourceRows("a", "a", contents, np.zeros(len(contents), dtype=np.bool_), None, 10_000)
    [drawn] = draw_rows([source])
    shares = np.bincount(split_by_hash(contents[drawn], 0.05, 0.1), minlength=3) / 10_000
    assert shares == pytest.approx([0.85, 0.1, 0.05], abs=4 * np.sqrt(0.1 * 0.9 / 10_000))
