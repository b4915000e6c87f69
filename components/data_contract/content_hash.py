"""One number for what a conversation says: it finds repeated rows and decides the split of a row.

Rows have the same number when their turns differ in case, Unicode form (NFKC) or whitespace only. Roles, the borders of
turns and punctuation count. It depends on the row alone, so a row keeps its split when others are added.
"""

import unicodedata
from collections.abc import Iterable, Sequence

import xxhash

_ROLE_ENDS, _TURN_ENDS = "\x1e", "\x1f"
"""Whitespace to Python: no normalised text can hold them, so no two conversations are spelled alike."""


def normalised(text: str) -> str:
    """NFKC and case folding, single spaces; folding can undo NFKC (U+0345), hence twice."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def content_hash(turns: Iterable[Sequence[str]]) -> int:
    """xxh3-64 of the normalised (role, content) pairs: from 0 to 2^64 - 1."""
    spelled = "".join(f"{role}{_ROLE_ENDS}{normalised(content)}{_TURN_ENDS}" for role, content in turns)
    return xxhash.xxh3_64_intdigest(spelled.encode("utf-8", "surrogatepass"))
