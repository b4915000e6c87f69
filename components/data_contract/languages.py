"""The language of a conversation, by py3langid (ISO 639); "" where its prose says too little to tell.

Prose is what is left of the turns without fenced code, inline code, addresses and lines that look like code. A guess is
kept where there is enough prose and the classifier is sure enough of it; a random language would break a limit for nothing.
Written Chinese is one language here (`wuu`, `yue` are `zh`): the classifier tells them by single characters. So is Norwegian
(`nn` is `no`), Nigerian Pidgin counts as English (`pcm`: it is what
informal English is taken for) and `zxx` ("no language") is "". Bosnian, Croatian and Serbian stay apart, although short texts
mix them up.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

SAME_LANGUAGE = {"wuu": "zh", "yue": "zh", "nn": "no", "pcm": "en", "zxx": "", "uzs": "uz"}
MAX_CHARACTERS = 200
"""Of prose, half of it from any one turn; more is hardly surer and costs 0.3 microseconds a byte."""
MIN_LETTERS = 24
MIN_IDEOGRAPHS = 6
MIN_CONFIDENCE = 0.5
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{1,200}`|(?:https?://|www\.)\S+", re.DOTALL)
_STARTS_AS_CODE = re.compile(
    r"^\s*(?:def |class |import |from \S+ import|return\b|for \S+ in |for ?\(|if ?\(|while ?\(|else\b|elif |try:|except|#include"
    r"|//|/\*|\*/|<[/!a-zA-Z][^>]*>|public |private |static |void |int |const |let |var |function "
    r"|SELECT |FROM |WHERE |INSERT |CREATE |print\(|\$ |>>> |@\w+$)"
)
_SIGNS_OF_CODE = frozenset("(){};=<>|\\$")
_CODE_INSIDE = re.compile(r"[;{}]\s*$|^\s*[\w.\[\]]+ ?[-+*/]?= ?\S|\w\(.*\)\s*[:;]?\s*$|[=<>{}|\\$]{2}")
_NOT_LETTERS = re.compile(r"[\W\d_]+")


def language_of(texts: Iterable[str]) -> str:
    """Two or three letters, or "": the language that most of the prose of the texts is written in."""
    prose = _sample(texts)
    letters = _NOT_LETTERS.sub("", prose)
    num_ideographs = sum(1 for letter in letters if letter > "\u2e80") if not letters.isascii() else 0
    if len(letters) < MIN_LETTERS and num_ideographs < MIN_IDEOGRAPHS:
        return ""
    language, confidence = _identifier().classify(prose)
    return SAME_LANGUAGE.get(language, language) if confidence >= MIN_CONFIDENCE else ""


def _sample(texts: Iterable[str]) -> str:
    parts: list[str] = []
    left = MAX_CHARACTERS
    for text in texts:
        part = _prose(text[: MAX_CHARACTERS * 4])[: MAX_CHARACTERS // 2]
        parts.append(part[:left])
        left -= len(part)
        if left <= 0:
            break
    return unicodedata.normalize("NFC", "\n".join(parts))


def _prose(text: str) -> str:
    without = _CODE.sub(" ", text) if "`" in text or "://" in text or "www." in text else text
    return "\n".join(line for line in without.splitlines() if not _is_code(line))


def _is_code(line: str) -> bool:
    if _STARTS_AS_CODE.match(line):
        return True
    return not _SIGNS_OF_CODE.isdisjoint(line) and bool(_CODE_INSIDE.search(line))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
