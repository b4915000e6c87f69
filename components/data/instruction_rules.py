"""Rules that an answer must keep and a program can check, under the ids and arguments that IFEval's rows use.

Source of ids, arguments and meanings: Zhou et al. 2023, arXiv 2311.07911. Every rule but `language:response_language` is here;
what a rule asks of the answer's language (`change_case:english_*`) is not checked, and sentences are told by their final
marks, so abbreviations count as ends. An answer is right when it keeps all rules of its prompt as it stands (prompt level,
strict).
"""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from components.data.faults import BadRowError
from components.data.strict_json import kind_of

LESS_THAN, AT_LEAST = "less than", "at least"
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
MEND = "Mend the row or remove it"


@dataclass(frozen=True)
class Rule:
    rule_id: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def is_kept(self, answer: str) -> bool:
        """An empty answer keeps no rule."""
        return bool(answer.strip()) and _RULES[self.rule_id](answer, **self.arguments)


def parse_rule(rule_id: str, arguments: dict[str, Any]) -> Rule:
    """A rule with its arguments checked; a BadRowError names what is wrong and what is known."""
    check = _RULES.get(rule_id)
    if check is None:
        raise BadRowError(f"the rule {rule_id!r} is not known. {MEND} (known: {', '.join(RULE_IDS)})")
    known = {name: one for name, one in inspect.signature(check).parameters.items() if one.kind is one.KEYWORD_ONLY}
    for name in arguments.keys() - known.keys():
        raise BadRowError(f"{rule_id} has no argument {name!r}, it takes {', '.join(known) or 'none'}. {MEND}")
    for name in known.keys() - arguments.keys():
        raise BadRowError(f"{rule_id} needs the argument {name!r} in kwargs. {MEND}")
    return Rule(rule_id, {name: _argument(rule_id, name, arguments[name], known[name].annotation) for name in known})


def _argument(rule_id: str, name: str, value: Any, wanted: Any) -> Any:
    if wanted is int and isinstance(value, int | float) and not isinstance(value, bool) and int(value) == value:
        return int(value)
    if name.endswith("relation") and value not in (LESS_THAN, AT_LEAST):
        raise BadRowError(f"{rule_id}: {name} must be {LESS_THAN!r} or {AT_LEAST!r}, found {value!r:.40}. {MEND}")
    is_texts = isinstance(value, list) and value and all(isinstance(one, str) and one for one in value)
    if (wanted is str and isinstance(value, str) and value) or (wanted is not int and wanted is not str and is_texts):
        return value
    shown = {int: "a whole number", str: "a text"}.get(wanted, "a list of texts")
    raise BadRowError(f"{rule_id}: {name} must be {shown}, found {kind_of(value)}. {MEND}")


def _holds(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == LESS_THAN else count >= limit


def _count(text: str, answer: str) -> int:
    return len(re.findall(re.escape(text), answer, re.IGNORECASE))


def _has_keywords(answer: str, *, keywords: list[str]) -> bool:
    return all(_count(keyword, answer) for keyword in keywords)


def _has_no_forbidden_words(answer: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in forbidden_words)


def _has_keyword_often(answer: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(_count(keyword, answer), relation, frequency)


def _has_letter_often(answer: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(answer.lower().count(letter.lower()), let_relation, let_frequency)


def _has_words(answer: str, *, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", answer)), relation, num_words)


def _has_sentences(answer: str, *, num_sentences: int, relation: str) -> bool:
    """Parted by final marks that no letter follows; without one at its end the last part is a sentence, too."""
    parts = re.split(r"[.!?。！？]+(?!\w)", answer)
    return _holds(sum(re.search(r"\w", part) is not None for part in parts), relation, num_sentences)


def _has_paragraphs(answer: str, *, num_paragraphs: int) -> bool:
    """Paragraphs are parted by `***`; one may be empty at the very start and end only."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    inner = parts[1:-1]
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def _nth_paragraph_begins(answer: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by empty lines."""
    paragraphs = [part.strip() for part in re.split(r"\n\n", answer) if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"").lower()
    return re.split(r"[.,?!'\"]", first)[0] == first_word.lower()


def _has_bullets(answer: str, *, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*]|-).*$", answer, re.MULTILINE)) == num_bullets


def _is_json(answer: str) -> bool:
    bare = re.sub(r"\A```(?:json)?|```\Z", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(bare.strip())
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(answer: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n]+?)>>", answer))


def _has_highlights(answer: str, *, num_highlights: int) -> bool:
    spans = re.findall(r"\*\*[^\n*]*\*\*|\*[^\n*]*\*", answer)
    return sum(bool(span.strip("*").strip()) for span in spans) >= num_highlights


def _has_sections(answer: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", answer)) - 1 >= num_sections


def _is_constrained(answer: str) -> bool:
    return any(option in answer for option in CONSTRAINED)


def _is_capital(answer: str) -> bool:
    return answer.isupper()


def _is_lowercase(answer: str) -> bool:
    return answer.islower()


def _has_capital_words(answer: str, *, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(sum(word.isupper() for word in re.findall(r"[\w'-]+", answer)), capital_relation, capital_frequency)


def _ends_with(answer: str, *, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _is_quoted(answer: str) -> bool:
    bare = answer.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _has_no_comma(answer: str) -> bool:
    return "," not in answer


def _has_postscript(answer: str, *, postscript_marker: str) -> bool:
    """Spaces within the marker are free: `P. S.` is `P.S.`; a P.P.S. is no P.S."""
    marker = r"\s?".join(map(re.escape, "".join(postscript_marker.split())))
    return re.search(rf"(?<![\w.]){marker}", answer, re.IGNORECASE) is not None


def _has_placeholders(answer: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def _repeats_prompt(answer: str, *, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _gives_two_responses(answer: str) -> bool:
    """Parted by `******`, both there, and not the same."""
    parts = [part.strip() for part in answer.split("******")]
    if len(parts) > 2 and not all(parts[1:-1]):
        return False
    said = [part for part in parts if part]
    return len(said) == 2 and said[0] != said[1]


_RULES: dict[str, Callable[..., bool]] = {
    "keywords:existence": _has_keywords,
    "keywords:forbidden_words": _has_no_forbidden_words,
    "keywords:frequency": _has_keyword_often,
    "keywords:letter_frequency": _has_letter_often,
    "length_constraints:number_words": _has_words,
    "length_constraints:number_sentences": _has_sentences,
    "length_constraints:number_paragraphs": _has_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_begins,
    "detectable_format:number_bullet_lists": _has_bullets,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _has_title,
    "detectable_format:number_highlighted_sections": _has_highlights,
    "detectable_format:multiple_sections": _has_sections,
    "detectable_format:constrained_response": _is_constrained,
    "detectable_content:postscript": _has_postscript,
    "detectable_content:number_placeholders": _has_placeholders,
    "change_case:english_capital": _is_capital,
    "change_case:english_lowercase": _is_lowercase,
    "change_case:capital_word_frequency": _has_capital_words,
    "startend:end_checker": _ends_with,
    "startend:quotation": _is_quoted,
    "punctuation:no_comma": _has_no_comma,
    "combination:repeat_prompt": _repeats_prompt,
    "combination:two_responses": _gives_two_responses,
}
RULE_IDS = tuple(_RULES)
