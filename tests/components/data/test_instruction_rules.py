"""Every rule has an answer that keeps it and answers that break it; what a row gets wrong about a rule is told."""

import time
from typing import Any

import pytest

from components.data.faults import BadRowError
from components.data.instruction_rules import RULE_IDS, Rule, parse_rule

CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "keywords:existence": ({"keywords": ["Fox", "den"]}, ["a fox, its DEN"], ["a fox", "den"]),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, ["a category"], ["a Cat.", "cat"]),
    "keywords:frequency": (
        {"keyword": "fox", "frequency": 2, "relation": "at least"},
        ["Fox fox", "fox fox fox"],
        ["fox"],
    ),
    "keywords:letter_frequency": ({"letter": "e", "let_frequency": 3, "let_relation": "less than"}, ["eEl"], ["eee", "EeE x"]),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, ["one two three."], ["one, two"]),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        ["One is 3.5 long. Two!", "no mark"],
        ["One. Two? Three!", "One. Two. three"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none\n***\ntwo\n***"],
        ["one", "one\n***\n***\ntwo", "one *** two *** three"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "fox"},
        ['a\n\n"Fox," it said'],
        ["fox\n\na", "a\n\nfoxes", "a\n\nfox\n\nb"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* one\n* two", "list:\n- one\n  - two"],
        ["* one", "* one\n* two\n* three", "**one**\n**two**"],
    ),
    "detectable_format:json_format": ({}, ['{"a": [1]}', '```json\n{"a": 1}\n```'], ["a: 1", "{'a': 1}", "Here: {}"]),
    "detectable_format:title": ({}, ["<<the fox>>\ntext"], ["<the fox>", "<< >>"]),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* and **two**"],
        ["*one* and two", "**** **", "* one\ntwo"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1\na", "Section one Section two"],
    ),
    "detectable_format:constrained_response": ({}, ["My answer is yes."], ["Yes.", "my answer is yes"]),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["text\nP.S. more", "text p. s. more"],
        ["text", "text P.P.S. more", "the caps."],
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["[name] [place]"], ["[name]", "name"]),
    "change_case:english_capital": ({}, ["ALL OF IT, 1."], ["All", "12"]),
    "change_case:english_lowercase": ({}, ["all of it, 1."], ["All", "12"]),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THE FOX runs"],
        ["THE fox", "The Fox"],
    ),
    "startend:end_checker": ({"end_phrase": "That is all."}, ["Well. that is all. ", '"That is all."'], ["That is all. No."]),
    "startend:quotation": ({}, ['"all of it"', ' "a" and "b" '], ['"half', '"', "none"]),
    "punctuation:no_comma": ({}, ["one and two"], ["one, two"]),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it"}, ["say it. It."], ["It. Say it"]),
    "combination:two_responses": ({}, ["one\n******\ntwo"], ["one", "one******one", "a******b******c", "******one"]),
}


@pytest.mark.parametrize("rule_id", RULE_IDS)
def test_a_rule_is_kept_by_these_answers_and_broken_by_those(rule_id: str) -> None:
    arguments, good, bad = CASES[rule_id]
    rule = parse_rule(rule_id, arguments)
    assert [answer for answer in good if not rule.is_kept(answer)] == []
    assert [answer for answer in bad if rule.is_kept(answer)] == []
    assert not rule.is_kept(" \n")


def test_the_two_relations_part_all_answers() -> None:
    for count in range(5):
        answer = "fox " * count + "x"
        kept = [parse_rule("keywords:frequency", {"keyword": "fox", "frequency": 3, "relation": relation}).is_kept(answer)
                for relation in ("less than", "at least")]  # fmt: skip
        assert kept == [count < 3, count >= 3]


def test_a_keyword_is_text_and_no_pattern() -> None:
    assert not parse_rule("keywords:existence", {"keywords": ["a.c"]}).is_kept("abc")
    assert parse_rule("keywords:forbidden_words", {"forbidden_words": ["c++"]}).is_kept("c and d")


def test_a_whole_number_may_be_written_as_a_float() -> None:
    assert parse_rule("detectable_format:number_bullet_lists", {"num_bullets": 2.0}) == Rule(
        "detectable_format:number_bullet_lists", {"num_bullets": 2}
    )


@pytest.mark.parametrize(
    ("rule_id", "arguments", "told"),
    [
        (
            "language:response_language",
            {"language": "kn"},
            r"the rule 'language:response_language' is not known.*known: keywords:",
        ),
        ("punctuation:no_comma", {"n": 1}, r"has no argument 'n', it takes none"),
        ("keywords:existence", {}, r"needs the argument 'keywords' in kwargs"),
        ("keywords:existence", {"keywords": "fox"}, r"keywords must be a list of texts, found a text"),
        ("startend:end_checker", {"end_phrase": 5}, r"end_phrase must be a text"),
        ("length_constraints:number_words", {"num_words": 2.5, "relation": "at least"}, r"num_words must be a whole number"),
        ("length_constraints:number_words", {"num_words": True, "relation": "at least"}, r"num_words must be a whole number"),
        (
            "length_constraints:number_words",
            {"num_words": 2, "relation": "at most"},
            r"'less than' or 'at least', found 'at most'",
        ),
    ],
)
def test_what_is_wrong_with_a_rule_is_told(rule_id: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRowError, match=told):
        parse_rule(rule_id, arguments)


@pytest.mark.parametrize("rule_id", RULE_IDS)
def test_a_long_answer_is_judged_in_no_time(rule_id: str) -> None:
    """What a model that never ends says: the longest runs of everything that a rule looks for."""
    rule = parse_rule(rule_id, CASES[rule_id][0])
    started = time.process_time()
    for answer in (
        "a" * 4000 + ".x",
        "word " * 1000 + "3.x",
        "* " * 2000,
        "<<" * 2000,
        "[" * 4000,
        "\n" * 4000 + "x",
        "*" * 4000,
    ):
        rule.is_kept(answer)
    assert time.process_time() - started < 2
