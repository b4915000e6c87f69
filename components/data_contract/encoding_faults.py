"""Characters that no writer meant: damage of a wrong decoding, and characters that nobody sees.

mojibake               text decoded with another encoding than it was written in (the heuristic of ftfy; 锟斤拷)
replacement_character  U+FFFD: bytes that were lost in an earlier decoding
control_character      C0 and C1 but tab, line feed, carriage return; DEL
byte_order_mark        U+FEFF, at the start of a turn too: it is no letter of the text
bidi_control           overrides always; embeddings and isolates where a line leaves them open or has no right-to-left letter
zero_width             joiners and spaces that join or part nothing their script needs, two of them in a row, tag characters
private_use, surrogate, unassigned   no character at all (blocks kept for emoji are left out: they fill up every year)

No fault: the joiners of emoji and of scripts that write with them, the flags of regions, right-to-left and left-to-right
marks, soft hyphens, variation selectors, the invisible operators of formulas.
"""

import re
import unicodedata
from functools import cache

from components.text_spans import Span

_BIDI_OPENERS, _BIDI_CLOSERS = "\u202a\u202b\u2066\u2067\u2068", "\u202c\u2069"
_OVERRIDES = "\u202d\u202e"
_BIDI = re.compile(f"[{_BIDI_OPENERS}{_BIDI_CLOSERS}{_OVERRIDES}]")
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\u180e"
_MATHEMATICAL = "\u2061\u2062\u2063\u2064"
"""Function application, times, separator, plus: written by formula editors between what they join."""
_TAGS = range(0xE0000, 0xE0080)
_EMOJI_BLOCKS = range(0x1F000, 0x20000)
_FIRST_JOINING_SCRIPT = 0x0530
"""Latin, Greek and Cyrillic end before; Arabic, Syriac, the Indic scripts and emoji, all of which join, come after."""
_SPACELESS = (range(0x0E00, 0x10A0), range(0x1780, 0x1800), range(0x1950, 0x1AB0))
"""Thai, Lao, Tibetan, Burmese, Khmer, Tai scripts: U+200B marks where a line may break."""
_LOST_IN_GBK = "锟斤拷"


class _Kinds(dict[str, str]):
    """The kind of fault that a character may be, "" for none; filled as characters turn up."""

    def __missing__(self, character: str) -> str:
        self[character] = kind = _kind(character)
        return kind


def _kind(character: str) -> str:
    codepoint, category = ord(character), unicodedata.category(character)
    if character in "\t\n\r":
        return ""
    if character == "\ufeff":
        return "byte_order_mark"
    if character == "\ufffd":
        return "replacement_character"
    if _BIDI.match(character):
        return "bidi_control"
    if character in _ZERO_WIDTH or codepoint in _TAGS:
        return "zero_width"
    if category == "Cn" and codepoint in _EMOJI_BLOCKS:
        return ""
    return {"Cc": "control_character", "Co": "private_use", "Cs": "surrogate", "Cn": "unassigned"}.get(category, "")


_KINDS = _Kinds()


def find_encoding_faults(text: str) -> list[Span]:
    """The faults of a text, in order of place; neighbours of one kind are one fault."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        return []
    characters = set(text)
    suspects = {character for character in characters if _KINDS[character]}
    faults = _mojibake(text, characters)
    if suspects:
        places = re.finditer(f"[{re.escape(''.join(sorted(suspects)))}]", text)
        allowed_bidi = _allowed_bidi(text) if _BIDI.search(text) else frozenset()
        faults += _joined([place.start() for place in places if _is_fault(text, place.start(), allowed_bidi)], text)
    return sorted(faults, key=lambda fault: (fault.start, fault.kind))


def _mojibake(text: str, characters: set[str]) -> list[Span]:
    from ftfy.badness import BADNESS_RE

    if characters.isdisjoint(_characters_of_mojibake()):
        return []
    bad = (match for match in BADNESS_RE.finditer(text) if "\ufffd" not in match[0])  # that has a kind of its own
    found = [Span("mojibake", *match.span()) for match in bad]
    return found + [Span("mojibake", *match.span()) for match in re.finditer(f"(?:{_LOST_IN_GBK})+", text)]


@cache
def _characters_of_mojibake() -> frozenset[str]:
    """Of these every find of ftfy holds one; dashes and quotation marks alone are none, and most texts have no others."""
    from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES

    harmless = "".join(MOJIBAKE_CATEGORIES[name] for name in ("common", "start_punctuation", "end_punctuation"))
    spelled = {character for character in BADNESS_RE.pattern if not character.isascii()} - set(harmless)
    ranged = {chr(codepoint) for codepoint in range(0x80, 0x250)} - set(harmless)
    return frozenset(spelled | ranged | set(_LOST_IN_GBK))


def _is_fault(text: str, place: int, allowed_bidi: frozenset[int]) -> bool:
    kind = _KINDS[text[place]]
    if kind == "bidi_control":
        return place not in allowed_bidi
    return kind != "zero_width" or not _is_needed(text, place)


def _is_needed(text: str, place: int) -> bool:
    """Does a zero-width character do what its script asks of it?"""
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    codepoint = ord(text[place])
    if codepoint in _TAGS:  # the flags of regions: a black flag, its tags, the last of which is U+E007F
        return bool(re.search("\U0001f3f4[\U000e0020-\U000e007e]{0,8}$", text[max(place - 9, 0) : place]))
    if not before or not after or before in _ZERO_WIDTH or after in _ZERO_WIDTH:
        return False
    if text[place] in "\u200c\u200d":
        return ord(before) >= _FIRST_JOINING_SCRIPT
    if text[place] in _MATHEMATICAL:
        return True
    return text[place] == "\u200b" and any(ord(side) in script for side in (before, after) for script in _SPACELESS)


def _allowed_bidi(text: str) -> frozenset[int]:
    """Places of embeddings and isolates that are closed on their line, on lines with right-to-left letters."""
    allowed: set[int] = set()
    start = 0
    for line in text.splitlines(keepends=True):
        places = [match.start() for match in _BIDI.finditer(line)]
        if places and _is_balanced(line, places) and any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in line):
            allowed.update(start + place for place in places if line[place] not in _OVERRIDES)
        start += len(line)
    return frozenset(allowed)


def _is_balanced(line: str, places: list[int]) -> bool:
    depth = 0
    for place in places:
        depth += 1 if line[place] not in _BIDI_CLOSERS else -1
        if depth < 0:
            return False
    return depth == 0


def _joined(places: list[int], text: str) -> list[Span]:
    spans: list[Span] = []
    for place in places:
        kind = _KINDS[text[place]]
        if spans and spans[-1].kind == kind and spans[-1].end == place:
            spans[-1] = Span(kind, spans[-1].start, place + 1)
        else:
            spans.append(Span(kind, place, place + 1))
    return spans
