"""Does a training text repeat a held-out item? Shared word n-grams and whole short texts, by 64-bit hashes.

Two texts overlap when they share a run of n words (13, as in the decontamination of GPT-3, arXiv 2005.14165, appendix C).
A text of fewer than n words has no such run: it is compared whole.

What is compared is the text's units: NFKC, case folded, split at whitespace, punctuation and invisible characters dropped.
* A script that writes no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) has one unit per character.
* A symbol (`+`, `=`, `$`, an emoji) is a unit of its own, so `3+4` and `3 + 4` are alike.
* Punctuation between digits is arithmetic and is kept, so `7 - 3`, `7 * 3` and `7 / 3` stay different questions.

Give the items' own words, turn by turn, never the rendered template: a system prompt that all share would match all.
"""

import re
import unicodedata
from array import array
from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from components.artifacts import fingerprint_bytes

Hashes = npt.NDArray[np.uint64]

DEFAULT_N = 13
UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x3FFFF),  # Han, further extensions
)
ARITHMETIC = {"-": " minus ", "*": " times ", "/": " over ", "%": " percent ", ".": " point ", ",": " comma ", ":": " to "}
_ARITHMETIC_WORDS = frozenset(word.strip() for word in ARITHMETIC.values())
_BETWEEN_DIGITS = re.compile(r"(\d)\s*([-*/%.,:])\s*(?=\d)")
_NEGATIVE = re.compile(r"(?<![\w-])-(?=\d)")
_SIEVE_BITS = 24
_MULTIPLIER = 0x9E3779B97F4A7C13
"""Odd and 3 modulo 8: differences of its powers have few factors of two, so swapped words do not collide."""


class _Units(dict[int, str]):
    """Table for str.translate, filled as characters turn up: what each one becomes before the split at whitespace."""

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        category = unicodedata.category(character)
        if category[0] == "P":
            unit = " "
        elif category == "Cf":
            unit = ""
        elif category[0] == "S" or any(first <= codepoint <= last for first, last in UNSPACED_SCRIPTS):
            unit = f" {character} "
        else:
            unit = character
        self[codepoint] = unit
        return unit


_UNITS = _Units()
_NO_HASHES: Hashes = np.empty(0, dtype=np.uint64)


def units(text: str) -> list[str]:
    """What is compared of a text: its words, in order, as the module's docstring says."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _keep_arithmetic(folded).translate(_UNITS).split()


def _keep_arithmetic(text: str) -> str:
    between = _BETWEEN_DIGITS.sub(lambda found: found[1] + ARITHMETIC[found[2]], text)
    return _NEGATIVE.sub(ARITHMETIC["-"], between) if "-" in between else between


def unit_hashes(text: str) -> Hashes:
    """The xxh3-64 hash of every unit of a text, in order."""
    words = " ".join(units(text)).encode("utf-8", "surrogatepass").split()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, words), dtype=np.uint64, count=len(words))


def run_hashes(hashes: Hashes, width: int) -> Hashes:
    """The hash of every run of `width` units, in order; fewer units than that have none."""
    if not 0 < width <= len(hashes):
        return _NO_HASHES
    factors, salt = _factors(width)
    shape = (len(hashes) - width + 1, width)
    windows: Hashes = np.ndarray(shape, np.uint64, buffer=np.ascontiguousarray(hashes), strides=(8, 8))  # views, no copies
    runs: Hashes = windows @ factors + salt  # wraps modulo 2^64 on purpose
    return runs


@cache
def _factors(width: int) -> tuple[Hashes, np.uint64]:
    powers = [pow(_MULTIPLIER, exponent, 1 << 64) for exponent in range(width, -1, -1)]
    return np.array(powers[1:], dtype=np.uint64), np.uint64(width * powers[0] % (1 << 64))


class OverlapIndex:
    """The held-out items, as sorted 64-bit hashes beside the number of the item: 12 bytes per n-gram, no text kept.

    The hash of an n-gram is a polynomial in the xxh3-64 hashes of its words, made for a whole text at once in numpy.
    Two different n-grams meet with a probability of about 2^-59: 10^7 against 10^6 of them meet once in 50,000 runs.

    An n-gram of signs and numbers for the greater part (`8/2 = <<8/2=4>>` has 13 units) is arithmetic that any text may hold:
    it is held only of an item that has no other.
    `max_ids` drops an n-gram that more ids than that share: it is the template of the items, not their content.
    A sieve of one bit per value of 24 bits of the hash (2 MiB) spares clean texts the search.
    """

    def __init__(self, ids: Sequence[str], texts: Sequence[str], n: int = DEFAULT_N, max_ids: int | None = None) -> None:
        if len(ids) != len(texts):
            raise ValueError(f"every text needs an id: {len(ids)} ids, {len(texts)} texts")
        if n < 1:
            raise ValueError(f"an n-gram has at least one word, got n={n}")
        self.n = n
        self._ids = tuple(dict.fromkeys(ids))
        number_of = {name: number for number, name in enumerate(self._ids)}
        hashes, owners = array("Q"), array("I")
        for name, text in zip(ids, texts, strict=True):
            found = self._hash(unit_hashes(text))
            found = found[_says_something(units(text), len(found))]
            hashes.frombytes(found.tobytes())
            owners.frombytes(np.full(len(found), number_of[name], dtype=np.uint32).tobytes())
        self._hashes, self._owners = _sorted_pairs(hashes, owners)
        if max_ids is not None:
            _, of_pair, num_ids = np.unique(self._hashes, return_inverse=True, return_counts=True)
            is_content = num_ids[of_pair] <= max_ids
            self._hashes, self._owners = self._hashes[is_content], self._owners[is_content]
        self._sieve = np.zeros(1 << (_SIEVE_BITS - 3), dtype=np.uint8)
        byte, bit = _sieve_place(self._hashes)
        np.bitwise_or.at(self._sieve, byte, bit)

    def __len__(self) -> int:
        """How many n-grams and whole short texts are held, each once per id."""
        return len(self._hashes)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides what is found."""
        names = "\n".join(self._ids).encode("utf-8", "surrogatepass")
        return fingerprint_bytes(str(self.n).encode(), names, self._hashes.tobytes(), self._owners.tobytes())

    def find(self, text: str) -> list[str]:
        """Ids of the held-out items that share an n-gram with a text, or are the same short text; in the order given."""
        return self.find_in_turns([unit_hashes(text)])

    def find_in_turns(self, hashes_of_turns: Sequence[Hashes]) -> list[str]:
        """The same for several texts at once, whose units were hashed before."""
        wanted = np.concatenate([self._hash(hashes) for hashes in hashes_of_turns]) if hashes_of_turns else _NO_HASHES
        byte, bit = _sieve_place(wanted)
        wanted = wanted[(self._sieve[byte] & bit) != 0]
        if not len(wanted):
            return []
        first, last = np.searchsorted(self._hashes, wanted), np.searchsorted(self._hashes, wanted, side="right")
        owners = [self._owners[start:end] for start, end in zip(first, last, strict=True)]
        return [self._ids[owner] for owner in np.unique(np.concatenate(owners))]

    def _hash(self, hashes: Hashes) -> Hashes:
        """One hash per n-gram; a shorter text has one hash of the whole, salted with its length; no words, no hash."""
        return run_hashes(hashes, min(self.n, len(hashes))) if len(hashes) else hashes


def _says_something(words: list[str], num_ngrams: int) -> npt.NDArray[np.bool_]:
    """Of every n-gram of a text: are half of its units words? All of them where none is."""
    width = len(words) - num_ngrams + 1
    num_words = np.cumsum([0, *(word.isalpha() and word not in _ARITHMETIC_WORDS for word in words)])
    is_prose = 2 * (num_words[width:] - num_words[:-width]) >= width if num_ngrams else np.zeros(0, dtype=bool)
    return is_prose if is_prose.any() else np.ones(num_ngrams, dtype=bool)


def _sorted_pairs(hashes: "array[int]", owners: "array[int]") -> tuple[Hashes, npt.NDArray[np.uint32]]:
    """Every pair of hash and owner once, by hash and then by owner."""
    hash_of, owner_of = np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(owners, dtype=np.uint32)
    order = np.lexsort((owner_of, hash_of))
    hash_of, owner_of = hash_of[order], owner_of[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (hash_of[1:] != hash_of[:-1]) | (owner_of[1:] != owner_of[:-1])
    return hash_of[is_new], owner_of[is_new]


def _sieve_place(hashes: Hashes) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    place = hashes >> np.uint64(64 - _SIEVE_BITS)
    return place >> np.uint64(3), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)
