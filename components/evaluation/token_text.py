"""A token's text for people: blanks and invisible characters made visible, and the direction a row is read in."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
INVISIBLE_CATEGORIES = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")
JOINERS = "\u200c\u200d"
"""Part of how Arabic, Indic scripts and emoji are written: left alone inside a token."""


@dataclass(frozen=True)
class Piece:
    """Characters of one kind; `is_mark` where `text` stands for characters that cannot be seen."""

    text: str
    is_mark: bool
    breaks_line: bool = False


def pieces(text: str) -> list[Piece]:
    """The text in order; a token without any is shown as an empty set."""
    found: list[Piece] = []
    for character in text:
        mark = _mark(character, text)
        if mark is not None:
            found.append(Piece(mark, True, character == "\n"))
        elif found and not found[-1].is_mark:
            found[-1] = Piece(found[-1].text + character, False)
        else:
            found.append(Piece(character, False))
    return found or [Piece("∅", True)]


def _mark(character: str, text: str) -> str | None:
    if character in VISIBLE:
        return VISIBLE[character]
    if unicodedata.category(character) not in INVISIBLE_CATEGORIES or (character in JOINERS and len(text) > 1):
        return None
    return f"U+{ord(character):04X}"


def direction(texts: Iterable[str]) -> str:
    """`rtl` where most letters are of a script written from right to left."""
    kinds = [unicodedata.bidirectional(character) for text in texts for character in text]
    return "rtl" if sum(kind in ("R", "AL") for kind in kinds) > kinds.count("L") else "ltr"
