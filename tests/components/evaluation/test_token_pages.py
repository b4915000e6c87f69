"""Laws of the token page: it needs nothing but itself, loses and repeats no token, marks what was weighed, and stays small."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from components.evaluation.probes import examples_of
from components.evaluation.token_cards import MAX_PROMPT_RUN, heat, hidden_prompts
from components.evaluation.token_pages import MAX_PAGE_BYTES, MAX_STEPS, render_token_page
from components.evaluation.token_text import direction, pieces
from tests.components.evaluation.fake_probe import STEPS, fake_probe

METHODS = ("sft", "masked_mle", "sft_kl", "uncertainty_aware")
COMPARISON: dict[str, Any] = {
    "methods": {"base": {"models": ["base"]}, **{name: {"models": [f"{name}-0", f"{name}-1"]} for name in METHODS}}
}


@pytest.fixture(scope="module")
def probes() -> dict[str, Any]:
    made = {f"{name}-{seed}": fake_probe(name, seed, num_rows=12) for name in METHODS for seed in range(2)}
    return dict(json.loads(json.dumps(made)))


@pytest.fixture(scope="module")
def page(probes: dict[str, Any]) -> str:
    return render_token_page(COMPARISON, probes)


def probe_of(texts: list[str], is_target: list[bool] | None = None, **fields: Any) -> dict[str, Any]:
    """A probe of one example with nothing recorded but the student's loss at one step."""
    marks = is_target or [True] * len(texts)
    tokens = [{"text": text, "is_target": mark} for text, mark in zip(texts, marks, strict=True)]
    steps = [{"step": 0, "student_nll": [1.0] * sum(marks)}]
    return {"examples": [{"row_id": "r:0", "tokens": tokens, "steps": steps, **fields}]}


def parse(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page)


def cards(page: str) -> list[ElementTree.Element]:
    return list(parse(page).iter("article"))


def tokens(card: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [token for token in card.iter("bdi") if (token.get("class") or "").split()[0] == kind]


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    for element in parse(page).iter():
        assert element.tag not in ("link", "iframe", "img", "object", "embed", "image")
        assert element.get("src") is None and element.get("href") in (None, "report.html")
    assert "://" not in page and "@import" not in page and "url(" not in page


def test_every_token_of_every_method_s_first_seed_appears_once_and_in_order(page: str, probes: dict[str, Any]) -> None:
    found = cards(page)
    wanted = [(name, example) for name in METHODS for example in examples_of(probes[f"{name}-0"])]
    assert len(found) == len(wanted)
    for name, example in wanted:
        label = f"Tokens of {example.row_id} under {name}; arrow keys go from one to the next"
        box = next(box for card in found for box in card.iter("div") if box.get("aria-label") == label)
        read = ["".join(token.itertext()) for token in box.iter("bdi")]
        assert read == example.texts
        numbers = [int(number) for token in box.iter("bdi") if (number := token.get("data-n"))]
        assert numbers == list(range(sum(example.is_target)))


def test_there_is_a_button_for_every_recorded_step_and_the_first_is_chosen(page: str) -> None:
    buttons = [button for button in parse(page).iter("input") if button.get("name") == "step"]
    assert [int(button.get("value") or -1) for button in buttons] == list(STEPS)
    assert [button.get("checked") is not None for button in buttons] == [True, *[False] * (len(STEPS) - 1)]
    labels = ["".join(label.itertext()) for label in parse(page).iter("label")]
    assert labels[0] == "before" and labels[len(STEPS) - 1] == "after (300)"


def test_marks_and_colours_without_javascript_are_those_of_the_first_step(page: str, probes: dict[str, Any]) -> None:
    example = examples_of(probes["uncertainty_aware-0"])[0]
    card = next(card for card in cards(page) if "uncertainty_aware" in "".join(card.find("h3").itertext()))  # type: ignore[union-attr]
    first = example.steps[0]
    for token, mle, distil in zip(tokens(card, "t"), first.mle_weight, first.distil_weight, strict=True):
        names = (token.get("class") or "").split()
        assert ("mle" in names) == (mle > 0) and ("distil" in names) == (distil > 0)
        assert re.fullmatch(r"--v: \d+", token.get("style") or "")
        assert "student" in (token.get("title") or "") and "base" in (token.get("title") or "")


def test_what_the_script_is_given_is_what_was_recorded(page: str, probes: dict[str, Any]) -> None:
    script = next(element for element in parse(page).iter("script") if element.get("id") == "token-data")
    embedded = json.loads(script.text or "")
    examples = [example for name in METHODS for example in examples_of(probes[f"{name}-0"])]
    for card, example in zip(embedded, examples, strict=True):
        for given, step in zip(card["steps"], example.steps, strict=True):
            assert given["student"] == pytest.approx(step.student_nll, abs=1e-3)
            assert given["mle"] == step.mle_weight and given["distil"] == step.distil_weight


def test_markup_in_tokens_rows_and_classes_is_escaped() -> None:
    evil = '</script><script>alert("1")</script>&'
    probe = probe_of([evil, "ok"], row_id=evil, classes=[evil, "]]>"])
    page = render_token_page({"methods": {evil: {"models": ["m-0"]}}}, {"m-0": probe})
    assert len(list(parse(page).iter("script"))) == 2, "its data and its code"
    assert "<script>alert" not in page
    assert ["".join(token.itertext()) for token in tokens(cards(page)[0], "t")] == [evil, "ok"]


def test_an_objective_without_mask_and_teacher_is_shown_with_what_it_has() -> None:
    page = render_token_page(
        {"methods": {"sft": {"models": ["sft-0"]}}}, {"sft-0": probe_of(["q", "a", "b"], [False, True, True])}
    )
    card = cards(page)[0]
    assert [token.get("class") for token in tokens(card, "t")] == ["t mle"] * 2, "every target token is learned"
    assert [button.get("value") for button in parse(page).iter("input") if button.get("name") == "quantity"] == ["student"]
    assert "2 of 2 target tokens learned, 0 distilled; student's mean loss 1.00" in "".join(card.itertext())


@pytest.mark.parametrize("probe", [{}, {"examples": None}, {"examples": []}, {"examples": [{"row_id": "r", "tokens": []}]}])
def test_without_examples_the_page_says_how_to_get_some(probe: dict[str, Any]) -> None:
    page = render_token_page({"methods": {"sft": {"models": ["sft-0"]}}}, {"sft-0": probe})
    assert "probe.num_examples" in page and not cards(page) and not list(parse(page).iter("script"))


def test_a_score_that_chooses_nothing_is_not_called_the_mask_s() -> None:
    probe = {**probe_of(["a", "b"]), "score": "student_nll", "select": "all"}
    probe["examples"][0]["steps"][0]["score"] = [1.0, 1.0]
    page = render_token_page({"methods": {"sft": {"models": ["sft-0"]}}}, {"sft-0": probe})
    assert "no mask" in page and "score of the mask" not in page


def test_all_steps_at_a_glance_have_a_line_per_step_and_a_cell_per_target(page: str, probes: dict[str, Any]) -> None:
    example = examples_of(probes["masked_mle-0"])[0]
    card = next(card for card in cards(page) if "masked_mle" in "".join(card.find("h3").itertext()))  # type: ignore[union-attr]
    lines = card.findall("details/div/table/tbody/tr")
    assert [line.findtext("th") for line in lines] == [str(step.step) for step in example.steps]
    for line, step in zip(lines, example.steps, strict=True):
        marks = ["mle" in (cell.get("class") or "").split() for cell in line.findall("td")]
        assert marks == [weight > 0 for weight in step.mle_weight]


def test_null_numbers_inside_a_list_are_shown_as_missing() -> None:
    probe = probe_of(["a", "b"], teacher_nll=[None, 2.0])
    probe["examples"][0]["steps"][0] |= {"student_nll": [None, float("nan")], "score": None, "selected": [True, False]}
    page = render_token_page({"methods": {"sft": {"models": ["sft-0"]}}}, {"sft-0": probe})
    assert "NaN" not in page.replace("isNaN", "")
    assert [token.get("style") for token in tokens(cards(page)[0], "t")] == ["--v: 0"] * 2


def test_a_page_of_very_long_rows_and_many_steps_stays_small_and_says_what_it_left_out() -> None:
    texts = [f"word{number} " for number in range(6000)]
    values = [round(1.2345 * number % 7, 4) for number in range(5000)]
    steps = [
        {"step": step, "score": values, "student_nll": values, "mle_weight": [0.1234] * 5000, "distil_weight": [0.5] * 5000}
        for step in range(60)
    ]
    raw = {"row_id": "long", "steps": steps, "teacher_nll": values, "classes": ["end_of_turn"] * 5000}
    example = {**raw, "tokens": [{"text": text, "is_target": place >= 1000} for place, text in enumerate(texts)]}
    probes = {f"m{number}-0": {"score": "student_nll", "examples": [example] * 3} for number in range(4)}
    page = render_token_page({"methods": {f"m{number}": {"models": [f"m{number}-0"]} for number in range(4)}}, probes)
    assert len(page.encode()) <= MAX_PAGE_BYTES
    assert "more tokens" in page
    buttons = [int(button.get("value") or 0) for button in parse(page).iter("input") if button.get("name") == "step"]
    assert len(buttons) == MAX_STEPS and (buttons[0], buttons[-1]) == (0, 59)


def test_of_a_long_prompt_only_the_end_is_shown_and_the_rest_is_counted() -> None:
    size = MAX_PROMPT_RUN + 25
    assert hidden_prompts([False] * size + [True]) == set(range(25))
    page = render_token_page(
        {"methods": {"sft": {"models": ["sft-0"]}}}, {"sft-0": probe_of(["p"] * size + ["a"], [False] * size + [True])}
    )
    assert "25 prompt tokens" in page and len(tokens(cards(page)[0], "p")) == MAX_PROMPT_RUN


def test_what_cannot_be_seen_is_shown_by_a_mark() -> None:
    assert [piece.text for piece in pieces(" a\n")] == ["·", "a", "↵"]
    assert [piece.text for piece in pieces("")] == ["∅"]
    assert [piece.text for piece in pieces("\u200b")] == ["U+200B"] and [piece.text for piece in pieces("\x00")] == ["U+0000"]
    assert [piece.text for piece in pieces("👨\u200d👩")] == ["👨\u200d👩"], "a joiner inside a token is part of the writing"
    for text in ("世界", "العالم", "naïve"):
        assert [piece.text for piece in pieces(text)] == [text]


def test_rows_of_a_script_written_from_the_right_are_read_from_the_right() -> None:
    assert direction(["<s>", "مرحبا", " بك"]) == "rtl"
    assert direction(["copy", " مرحبا"[:3], " the word"]) == "ltr" and direction(["1", "."]) == "ltr"


def test_heat_in_nats_is_the_probability_that_was_not_given() -> None:
    for probability in (1.0, 0.75, 0.5, 0.02):
        assert heat(-math.log(probability)) == round(100 * (1 - probability))
    assert heat(None) == 0 and heat(-math.log(2)) == heat(math.log(2)), "a negative score has a hue of its own"


def test_heat_in_another_unit_is_full_at_the_cap() -> None:
    assert [heat(value, 2.0) for value in (None, 0.0, 1.0, -1.0, 2.0, 9.0)] == [0, 0, 50, 50, 100, 100]
    probe = {**probe_of(["a", "b"]), "score": "probability_gain", "select": "high"}
    probe["examples"][0]["steps"][0]["score"] = [-0.2, 0.4]
    page = render_token_page({"methods": {"m": {"models": ["m-0"]}}}, {"m-0": probe})
    assert "score: probability_gain, full colour at 0.2" in page and "below zero" in page
    assert [token.get("class") for token in tokens(cards(page)[0], "t")] == ["t mle below", "t mle"]


def test_ink_is_readable_on_the_full_colours_of_both_themes(page: str) -> None:
    themes = re.findall(r"--ink: (#\w{6})", page), re.findall(r"--heat: (#\w{6}); --below: (#\w{6})", page)
    for ink, grounds in zip(*themes, strict=True):
        assert min(contrast(ink, ground) for ground in grounds) >= 4.5


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.1."""

    def luminance(colour: str) -> float:
        shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
