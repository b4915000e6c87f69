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
_BETWEEN_DIGITS = re.compile(r"(\d)\s*([-*/%.,:])\s*(?=\d)")
_NEGATIVE = re.compile(r"(?<![\w-])-(?=\d)")
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


def units(text: str) -> list[str]:
    """What is compared of a text: its words, in order, as the module's docstring says."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _keep_arithmetic(folded).translate(_UNITS).split()


def _keep_arithmetic(text: str) -> str:
    between = _BETWEEN_DIGITS.sub(lambda found: found[1] + ARITHMETIC[found[2]], text)
    return _NEGATIVE.sub(ARITHMETIC["-"], between) if "-" in between else between


def ngrams(text: str, n: int) -> list[str]:
    """Every run of n units, in order, joined by single spaces; none where the text has fewer than n."""
    if n < 1:
        raise ValueError(f"an n-gram has at least one word, got n={n}")
    words = units(text)
    return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]


def normalised_fingerprint(text: str) -> str:
    """Equal for texts that differ in case, Unicode form or whitespace only; punctuation counts (it is meaning in code)."""
    normalised = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return fingerprint_bytes(" ".join(normalised.split()).encode("utf-8", "surrogatepass"))


class OverlapIndex:
    """The held-out items, as sorted 64-bit hashes beside the number of the item: 12 bytes per n-gram, no text kept.

    The hash of an n-gram is a polynomial in the xxh3-64 hashes of its words, made for a whole text at once in numpy.
    Two different n-grams meet with a probability of about 2^-59: 10^7 against 10^6 of them meet once in 50,000 runs.
    """

    def __init__(self, ids: Sequence[str], texts: Sequence[str], n: int = DEFAULT_N) -> None:
        if len(ids) != len(texts):
            raise ValueError(f"every text needs an id: {len(ids)} ids, {len(texts)} texts")
        if n < 1:
            raise ValueError(f"an n-gram has at least one word, got n={n}")
        self.n = n
        self._ids = tuple(ids)
        hashes, owners = array("Q"), array("I")
        for owner, text in enumerate(texts):
            found = self._hash(text)
            hashes.frombytes(found.tobytes())
            owners.extend([owner] * len(found))
        order = np.argsort(np.frombuffer(hashes, dtype=np.uint64), kind="stable")
        self._hashes: Hashes = np.frombuffer(hashes, dtype=np.uint64)[order]
        self._owners: npt.NDArray[np.uint32] = np.frombuffer(owners, dtype=np.uint32)[order]

    def __len__(self) -> int:
        """How many n-grams and whole short texts are held."""
        return len(self._hashes)

    def find(self, text: str) -> list[str]:
        """Ids of the held-out items that share an n-gram with a text, or are the same short text; in the order given."""
        wanted = self._hash(text)
        first = np.searchsorted(self._hashes, wanted)
        held = self._hashes[np.minimum(first, len(self) - 1)] == wanted if len(self) else np.zeros(len(wanted), dtype=bool)
        if not held.any():
            return []
        last = np.searchsorted(self._hashes, wanted[held], side="right")
        owners = np.unique(np.concatenate([self._owners[a:b] for a, b in zip(first[held], last, strict=True)]))
        return list(dict.fromkeys(self._ids[owner] for owner in owners))

    def _hash(self, text: str) -> Hashes:
        """One hash per distinct n-gram; a shorter text has one hash of the whole, salted with its length; no words, no hash."""
        words = " ".join(units(text)).encode("utf-8", "surrogatepass").split()
        if not words:
            return np.empty(0, dtype=np.uint64)
        hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, words), dtype=np.uint64, count=len(words))
        width = min(self.n, len(words))
        total = np.full(len(words) - width + 1, width, dtype=np.uint64)
        for offset in range(width):  # wraps modulo 2^64 on purpose
            total = total * np.uint64(_MULTIPLIER) + hashes[offset : offset + len(total)]
        return np.unique(total)
