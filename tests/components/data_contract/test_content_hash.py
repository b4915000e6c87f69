"""Laws of the content hash: counts of repeated rows are exact, and nothing but what is said counts."""

import random
import unicodedata
from collections import Counter

from components.data_contract.content_hash import content_hash

WORDS = "straße café Ångström ﬁne Πάντα ΣΊΣΥΦΟΣ İstanbul naïve 今天 天气 ｆｕｌｌ x+y=3 don't Ǆ ᾳ".split()


def variant(text: str, rng: random.Random) -> str:
    text = rng.choice((str.upper, str.lower, str))(text)
    text = unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKC", "NFKD")), text)
    return rng.choice((" ", "\n", "\u2003")) + rng.choice((" ", "\t", "  ", "\u00a0")).join(text.split(" "))


def test_exact_and_disguised_repeats_are_counted_exactly() -> None:
    rng = random.Random(0)
    originals = [f"row {number} " + " ".join(rng.choices(WORDS, k=6)) for number in range(300)]
    copies = [rng.randrange(4) for _ in originals]
    rows = [[["user", text], ["assistant", "yes"]] for text in originals]
    for text, num_copies in zip(originals, copies, strict=True):
        rows += [[["user", variant(text, rng)], ["assistant", variant("yes", rng)]] for _ in range(num_copies)]
    rng.shuffle(rows)
    counts = Counter(content_hash(row) for row in rows)
    assert sorted(counts.values()) == sorted(num_copies + 1 for num_copies in copies)


def test_roles_borders_of_turns_and_punctuation_count() -> None:
    rows = [
        [["user", "a b"], ["assistant", "c"]],
        [["user", "a"], ["assistant", "b c"]],
        [["assistant", "a b"], ["user", "c"]],
        [["user", "a b c"]],
        [["user", "a b"], ["assistant", "c."]],
        [["user", "a b"], ["assistant", "c"], ["user", ""]],
        [["user", "a\x1fassistant\x1eb c"]],
    ]
    assert len({content_hash(row) for row in rows}) == len(rows)


def test_the_hash_is_a_number_of_64_bits_that_never_changes() -> None:
    assert content_hash([["user", "Hello"], ["assistant", "Hi"]]) == PINNED
    assert 0 <= content_hash([]) < 2**64


def test_a_lone_surrogate_is_a_letter_like_another() -> None:
    assert content_hash([["user", "x\ud800"]]) != content_hash([["user", "x"]])


PINNED = 10766331203287685918
