"""Laws of near duplicates: recall and precision on a labelled set, short rows, templates, cost."""

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from components.data_contract.near_duplicates import (
    MIN_UNITS,
    NUM_BANDS,
    band_hashes,
    near_duplicate_groups,
    shingles,
    similarity_of,
)
from components.data_contract.overlap import Hashes, unit_hashes
from tests.components.data_contract.conftest import ngrams

VOCABULARY = [f"w{number}" for number in range(20_000)]
Text = Callable[[int], str]


def shingles_of(text: str) -> Hashes:
    return shingles([unit_hashes(text)])


def groups(texts: Sequence[str], similarity: float = 0.8) -> list[int]:
    bands = np.array([band_hashes(shingles_of(text)) for text in texts], dtype=np.uint64).reshape(-1, NUM_BANDS)
    return near_duplicate_groups(bands, lambda row: [["user", texts[row]]], similarity).tolist()


def edited(words: list[str], num_edits: int, rng: random.Random) -> list[str]:
    words = list(words)
    for place in rng.sample(range(len(words)), num_edits):
        words[place] = rng.choice(VOCABULARY)
    return words


def jaccard(first: str, second: str) -> float:
    mine, other = set(ngrams(first, 3)), set(ngrams(second, 3))
    return len(mine & other) / len(mine | other)


def labelled_set(num_originals: int = 400) -> list[str]:
    """Originals, each with rewritings of many degrees, in random order."""
    rng = random.Random(0)
    texts = []
    for _ in range(num_originals):
        words = rng.choices(VOCABULARY, k=rng.randint(MIN_UNITS, 150))
        texts.append(" ".join(words))
        texts += [" ".join(edited(words, rng.randint(0, max(len(words) // 12, 1)), rng)) for _ in range(rng.randrange(3))]
    rng.shuffle(texts)
    return texts


def _is_near(first: set[str], second: set[str]) -> bool:
    """Jaccard similarity of 0.8; sets of too different sizes need no look."""
    few, many = sorted((len(first), len(second)))
    if few < 0.8 * many:
        return False
    num_shared = len(first & second)
    return num_shared >= 0.8 * (few + many - num_shared)


def test_recall_and_precision_at_a_similarity_of_08_are_above_095() -> None:
    texts = labelled_set()
    sets = [set(ngrams(text, 3)) for text in texts]
    is_near = [any(_is_near(sets[row], sets[other]) for other in range(row)) for row in range(len(texts))]
    found = groups(texts)
    hits = sum(near and group >= 0 for near, group in zip(is_near, found, strict=True))
    recall, precision = hits / sum(is_near), hits / sum(group >= 0 for group in found)
    print(f"\n{len(texts)} rows, {sum(is_near)} near duplicates: recall {recall:.3f}, precision {precision:.3f}")
    assert sum(is_near) > 100
    assert recall >= 0.95
    assert precision >= 0.95


def test_the_row_that_is_named_comes_earlier_and_is_as_similar_as_asked() -> None:
    texts = labelled_set(200)
    for row, group in enumerate(groups(texts, 0.7)):
        assert group < row
        assert group < 0 or jaccard(texts[row], texts[group]) >= 0.7


def test_similarity_is_that_of_the_sets_of_shingles() -> None:
    rng = random.Random(3)
    words = rng.choices(VOCABULARY, k=80)
    for num_edits in (0, 1, 5, 20, 80):
        other = edited(words, num_edits, rng)
        first, second = " ".join(words), " ".join(other)
        assert similarity_of(shingles_of(first), shingles_of(second)) == pytest.approx(jaccard(first, second))


def test_short_templated_rows_are_near_only_where_their_units_are_equal() -> None:
    texts = ["cipher s1 s2 s3", "cipher s2 s1 s4", "Cipher: s1, s2, s3!", "cipher s1 s2 s3 s3", "add 3 and 4", "add 3 and 5"]
    assert groups(texts) == [-1, -1, 0, -1, -1, -1]
    head = " ".join(f"t{number}" for number in range(MIN_UNITS - 2))
    assert groups([f"{head} 3", f"{head} 4"]) == [-1, -1]
    assert groups([f"{head} x 3", f"{head} x 4"]) == [-1, 0]


def test_case_punctuation_and_unicode_form_hide_no_repeat() -> None:
    text = (
        "The café, which is old, has twelve tables and each of them seats four guests; how many guests can be seated in the café "
    )
    text += "when three of its tables are taken outside for the summer?"
    assert groups([text, text.upper().replace(",", ""), text.replace("é", "e\u0301")]) == [-1, 0, 0]


def test_rows_without_units_repeat_nothing() -> None:
    assert groups(["...", "!!!", "", "..."]) == [-1] * 4


def test_no_rows_have_no_groups() -> None:
    assert groups([]) == []


def test_rows_of_one_template_are_told_apart_and_their_repeats_found() -> None:
    rng = random.Random(4)
    head = " ".join(f"t{number}" for number in range(40))
    texts = [f"{head} " + " ".join(rng.choices(VOCABULARY, k=30)) for _ in range(600)]
    repeats = [rng.randrange(600) for _ in range(200)]
    found = groups([*texts, *(texts[row] for row in repeats)])
    assert found[:600] == [-1] * 600
    assert sum(group == row for group, row in zip(found[600:], repeats, strict=True)) >= 190


@pytest.mark.parametrize("kind", ["equal", "below the limit"])
def test_time_is_linear_and_content_is_asked_for_rarely_when_all_rows_share_buckets(kind: str) -> None:
    num_rows = 5_000  # a comparison of all pairs would take minutes
    head = " ".join(f"t{number}" for number in range(40))

    def text(row: int) -> str:
        words = random.Random(row).choices(VOCABULARY, k=0 if kind == "equal" else 20)
        return " ".join([head, *words])

    bands = np.tile(band_hashes(shingles_of(head)), (num_rows, 1))
    asked = []

    def content_of(row: int) -> list[list[str]]:
        asked.append(row)
        return [["user", text(row)]]

    start = time.process_time()
    found = near_duplicate_groups(bands, content_of)
    assert (found[1:] == (0 if kind == "equal" else -1)).all()
    assert len(asked) <= 2 * num_rows
    assert time.process_time() - start < 20


def test_the_bands_are_the_same_on_every_machine_and_day() -> None:
    bands = band_hashes(shingles_of(" ".join(f"t{number}" for number in range(2000))))
    assert bands.dtype == np.uint64
    assert [int(bands[0]), int(bands[15])] == PINNED


def test_bands_may_be_a_memory_map(tmp_path: object) -> None:
    texts = labelled_set(50)
    bands = np.array([band_hashes(shingles_of(text)) for text in texts])
    np.save(f"{tmp_path}/bands.npy", bands)
    mapped = np.load(f"{tmp_path}/bands.npy", mmap_mode="r")
    assert near_duplicate_groups(mapped, lambda row: [["user", texts[row]]]).tolist() == groups(texts)


PINNED = [18034415752710414825, 113791639242293942]
