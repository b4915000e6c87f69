"""Laws of the report's section on the data: its sums agree, other people's text stays text, and without a card there is none."""

import json
import re
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from components.evaluation.report import render_html, write_report
from components.evaluation.report_data_card import KINDS, MAX_SOURCES, SPLITS, data_section, shown, source_lines
from components.evaluation.report_histograms import bin_rows, histogram_panels, tick_step
from tests.components.evaluation.test_report import CONTEXT, compare, parse, text_of

HOSTILE = '</p><script>alert("1")</script> & \x00 \x1b[31m \u202eabc \u2066 \ufffe \x85'
ROWS_USED = {"train": 90, "validation": 6, "test": 4}


def figures(total: int) -> dict[str, Any]:
    return {"min": 3, "mean": 12.25, "median": 11, "percentile_95": 28, "max": 31, "total": total}


def source(name: str, rows: int, **about: Any) -> dict[str, Any]:
    """A source of which every row is used for training."""
    unsaid = {"origin": None, "licence": None, "weight": None, "max_examples": None, "rows_not_drawn": 0, "target_tokens": rows}
    used = {"train": rows, "validation": 0, "test": 0}
    made = {"rows_read": rows, "rows_in": rows, "rows_used": used, "quarantined_by_kind": {}, "schemas": {"alpaca": rows}}
    return {"name": name, **unsaid, **made, **about}


def make_card() -> dict[str, Any]:
    """120 rows read of two sources, 10 not drawn, 10 quarantined."""
    kinds = {"empty_turn": 8, "duplicate": 2}
    lengths = {name: {split: figures(1000 * count) for split, count in ROWS_USED.items()} for name in ("tokens", "target_tokens")}
    histogram = {"edges": [0, 10, 20, 30, 40], "train": [20, 50, 19, 1], "validation": [1, 2, 3, 0], "test": [0, 4, 0, 0]}
    first = source("a.jsonl", 60, licence="MIT (LICENSE)", weight=2.0, rows_read=70, rows_not_drawn=10)
    second = source("b/c.json", 30, rows_read=50, rows_in=50, rows_used={"train": 30, "validation": 6, "test": 4})
    return {
        "counts": {
            "rows_read": 120,
            "rows_not_drawn": 10,
            "rows_in": 110,
            "rows_used": ROWS_USED,
            "rows_quarantined": 10,
            "quarantined_by_kind": kinds,
            "rows_cut": 3,
            "target_tokens": {split: 1000 * count for split, count in ROWS_USED.items()},
            "schemas": {"alpaca": 100},
        },
        "chat_template": "chatml",
        "max_length": 40,
        "vocabulary_size": 32_000,
        "sources": [first, {**second, "quarantined_by_kind": kinds}],
        "lengths": {**lengths, "turns": {split: figures(2) for split in SPLITS}},
        "histograms": {"tokens": histogram, "target_tokens": histogram},
        "rows_cut": {"train": 2, "validation": 1, "test": 0},
        "languages": {"en": 80, "undetermined": 20},
        "findings": {
            "duplicates": {"rows": 2, "of_other_split": 1},
            "near_duplicates": {"rows": 0},
            "ood_overlaps": {"rows": 3, "by_set": {"sort.txt": 3}},
            "test_overlaps": {"rows": 0},
            "encoding_faults": {"rows": 1, "by_kind": {"mojibake": 1}},
            "secrets": {"rows": 0, "by_kind": {}},
            "personal_data": {"rows": 5, "by_kind": {"email_address": 4, "phone_number": 1}},
        },
        "quarantine": [
            {
                "kind": "empty_turn",
                "count": 8,
                "rows": [{"row": f"b/c.json:{n}", "reason": "turn 2 is empty"} for n in (1, 2, 3)],
            },
            {"kind": "duplicate", "count": 2, "rows": [{"row": f"b/c.json:{n}", "reason": "repeats a.jsonl:1"} for n in (4, 5)]},
        ],
        "examples": [
            {
                "row": "a.jsonl:7",
                "num_tokens": 31,
                "num_target_tokens": 12,
                "is_truncated": True,
                "num_turns": 12,
                "turns": [
                    {"role": "user", "text": "how many eggs?\nthink", "num_characters_left_out": 0},
                    {"role": "assistant", "text": "שלום fourteen", "num_characters_left_out": 1234},
                ],
            }
        ],
    }


def render(comparison: dict[str, Any], card: dict[str, Any] | None) -> str:
    return render_html(comparison, {}, CONTEXT, data_card=card)


def section_of(page: str) -> str:
    """The section's markup: from its heading to the next."""
    return page[page.index('<h2 id="data">') : page.index("<h2>How to reproduce")]


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    return compare(num_seeds=1)


@pytest.fixture(scope="module")
def page(comparison: dict[str, Any]) -> str:
    return render(comparison, make_card())


def table(page: str, label: str) -> list[list[str]]:
    """The cells of a table's body as a reader reads them."""
    region = next(element for element in parse(page).iter("div") if element.get("aria-label") == label)
    return [[" ".join(" ".join(cell.itertext()).split()) for cell in row] for row in region.findall("table/tbody/tr")]


def column_sum(rows: list[list[str]], column: int) -> int:
    return sum(int(row[column].replace(",", "")) for row in rows)


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_sums_that_are_written_down_are_right_and_those_of_the_tables(page: str) -> None:
    said = [int(number.replace(",", "")) for number in re.findall(r"<b>([\d,]+)</b>", section_of(page).partition("</p>")[0])]
    read, rows_in, not_drawn, again, used, quarantined = said
    assert read == rows_in + not_drawn and again == rows_in == used + quarantined
    splits, sources = table(page, "Splits"), table(page, "Sources of the data")
    assert column_sum(splits, 1) == used
    assert [column_sum(sources, column) for column in (4, 5)] == [read, not_drawn]
    assert [column_sum(sources, column) for column in (6, 7, 8)] == [int(row[1]) for row in splits]
    assert column_sum(sources, 9) == column_sum(table(page, "Quarantined rows"), 1) == quarantined
    assert column_sum(table(page, "Languages"), 1) == used
    for title in ("Tokens", "Target tokens"):
        bins = table(page, f"{title} per row in numbers")
        assert [column_sum(bins, column) for column in (1, 2, 3)] == [int(row[1]) for row in splits]


def test_a_licence_is_shown_as_given_and_a_missing_one_is_said_to_be_missing(page: str) -> None:
    assert [row[1] for row in table(page, "Sources of the data")] == ["MIT (LICENSE)", "not given"]


def test_every_rejection_has_its_reason_and_the_rest_is_counted(page: str) -> None:
    empty, twice = table(page, "Quarantined rows")
    assert "b/c.json:1 turn 2 is empty" in empty[3] and "and 5 more in quarantine.jsonl" in empty[3]
    assert "repeats a.jsonl:1" in twice[3] and "more" not in twice[3]


def test_findings_name_their_kinds_and_sets(page: str) -> None:
    read = {row[0]: row[1:] for row in table(page, "Findings")}
    assert read["hold what looks like personal data"] == ["5", "4.5 %", "email address 4 phone number 1"]
    assert read["are for training and share text with an OOD set"][2] == "sort.txt 3"
    assert read["repeat another row, but for case, Unicode form and blanks"][2] == "of another split 1"
    assert read["hold what looks like a secret"] == ["0", "0.0 %", "–"]


def test_what_is_cut_off_an_example_is_said(page: str) -> None:
    read = " ".join(text_of(page).split())
    assert "a.jsonl:7 31 tokens, 12 of them targets; truncated" in read
    assert "… 1,234 more characters" in read and "… 10 more turns" in read


def test_every_kind_of_fault_has_its_words() -> None:
    from components.data.faults import FaultKind

    assert set(KINDS) == {kind.value for kind in FaultKind}


def test_sources_beyond_the_longest_table_are_added_up() -> None:
    sources = [source(f"{place:03}.jsonl", rows=1 + place % 50, licence="MIT") for place in range(MAX_SOURCES + 25)]
    lines = source_lines(sources)
    assert len(lines) == MAX_SOURCES + 1
    for name, key in (("rows_read", "read"), ("target_tokens", "target_tokens")):
        assert sum(line[key] for line in lines) == sum(one[name] for one in sources)
    assert lines[-1]["read"] == sum(sorted(one["rows_read"] for one in sources)[:25]), "those with fewest rows"
    assert "".join(piece.text for piece in lines[-1]["name"]).startswith("25 smaller ones")


# --- other people's text --------------------------------------------------------------------------------------------


def hostile_card() -> dict[str, Any]:
    card = make_card()
    card["chat_template"] = HOSTILE
    card["sources"][0] |= {"name": HOSTILE, "licence": HOSTILE, "origin": HOSTILE}
    card["quarantine"][0]["rows"][0] = {"row": HOSTILE, "reason": HOSTILE}
    card["findings"]["ood_overlaps"]["by_set"] = {HOSTILE: 3}
    card["examples"][0] |= {"row": HOSTILE}
    card["examples"][0]["turns"][1]["text"] = HOSTILE
    return card


def test_hostile_text_stays_text_on_a_valid_page(comparison: dict[str, Any]) -> None:
    page = render(comparison, hostile_card())
    assert "<script" not in page
    read = text_of(page)
    assert read.count('<script>alert("1")</script>') == 9
    assert read.count("U+0000") == read.count("U+202E") == read.count("U+FFFE") == read.count("U+0085") == 9


def test_no_character_that_turns_or_hides_text_reaches_the_page(comparison: dict[str, Any]) -> None:
    page = render(comparison, hostile_card())
    assert not set(page) & set("\x00\x1b\x85\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe")


def test_text_is_isolated_from_the_page_around_it(page: str) -> None:
    body = parse(page)
    names = [element for element in body.iter("bdi") if "b/c.json" in "".join(element.itertext())]
    assert names, "names of sources and rows"
    turns = [element for element in body.iter("p") if "fourteen" in "".join(element.itertext())]
    assert [turn.get("dir") for turn in turns] == ["auto"]


def test_text_for_people_keeps_its_blanks_lines_and_joined_characters() -> None:
    for text in ("two words\n  and a line", "👩‍👩‍👧 می‌خواهم", "naïve 中文 שלום"):
        assert [piece.text for piece in shown(text) if piece.is_mark] == []
        assert "".join(piece.text for piece in shown(text)) == text
    assert [piece.text for piece in shown("a\tb\x07") if piece.is_mark] == ["⇥", "U+0007"]
    assert shown("") == []


# --- the figures ----------------------------------------------------------------------------------------------------


def test_every_split_with_rows_has_a_panel_with_words_for_who_cannot_see_it(page: str) -> None:
    labels = [svg.get("aria-label") or "" for svg in svg_of(page)]
    assert len(labels) == 2 * len(SPLITS)
    assert labels[0] == "Histogram of tokens per train row: median 11; most often 10 to 19 (56 % of the rows)"


def svg_of(page: str) -> list[ElementTree.Element]:
    return [element for element in parse(section_of_parsed(page)).iter("svg")]


def section_of_parsed(page: str) -> str:
    return f"<section>{section_of(page)}</section>"


def test_bars_are_as_high_as_their_share_and_stay_on_the_picture() -> None:
    counts = {"train": [1, 2, 1, 0], "test": [1, 0, 0, 0]}
    panels = histogram_panels([0, 5, 10, 15, 20], counts, {"train": 7, "test": None}, "tokens")
    heights = {
        name: [float(height) for height in re.findall(r'class="column".*?height="([\d.]+)"', svg)] for name, svg in panels.items()
    }
    assert len(heights["train"]) == 3 and len(heights["test"]) == 1, "an empty bin has no bar"
    one, two, _ = heights["train"]
    assert two == pytest.approx(2 * one, abs=0.2) and heights["test"][0] == pytest.approx(2 * two, abs=0.2)
    for svg in panels.values():
        width, height = (float(side) for side in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
        for x, y in re.findall(r' x="([-\d.]+)" y="([-\d.]+)"', svg):
            assert 0 <= float(x) <= width and 0 <= float(y) <= height


def test_a_single_row_among_a_million_can_be_seen() -> None:
    (panel,) = histogram_panels([0, 5, 10], {"train": [999_999, 1]}, {}, "tokens").values()
    assert all(float(height) >= 1 for height in re.findall(r'class="column".*?height="([\d.]+)"', panel))


def test_ticks_are_few_and_round() -> None:
    for reach in (0.001, 0.7, 1, 22, 100, 130_000):
        step = tick_step(reach, 5)
        assert 1 <= reach / step <= 5 + 1e-6
        assert f"{step:e}"[0] in "125"


def test_the_table_of_bins_leaves_out_only_empty_ones() -> None:
    lines = bin_rows([0, 1, 2, 3], {"train": [0, 4, 0], "test": [0, 0, 2]})
    assert [(line["name"], line["counts"]) for line in lines] == [("1", {"train": 4, "test": 0}), ("2", {"train": 0, "test": 2})]


# --- what is missing ------------------------------------------------------------------------------------------------


def test_without_a_card_there_is_no_section(comparison: dict[str, Any]) -> None:
    assert data_section(None) is None
    page = render(comparison, None)
    parse(page)
    assert 'id="data"' not in page


def test_an_empty_split_nothing_found_and_nothing_rejected_render(comparison: dict[str, Any]) -> None:
    card = make_card()
    for of_splits in card["lengths"].values():
        of_splits["test"] = None
    for histogram in card["histograms"].values():
        histogram["test"] = [0, 0, 0, 0]
    card |= {"quarantine": [], "examples": [], "max_length": None, "languages": {}}
    page = render(comparison, card)
    read = text_of(page)
    assert "No row was quarantined." in read and "None" not in read and "maximum length" not in read
    assert len(svg_of(page)) == 4


def test_the_page_with_its_data_needs_nothing_from_elsewhere_and_is_the_same_each_time(
    comparison: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("one", "other"):
        card = json.loads(json.dumps(deepcopy(make_card()), sort_keys=name == "one"))
        write_report(tmp_path / name, comparison, {}, CONTEXT, data_card=card)
    one, other = ((tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("one", "other"))
    assert one == other
    section = section_of(one)
    assert not re.findall(r"\w+://", section) and "href" not in section and "src=" not in section


def test_both_themes_define_the_colours_of_the_section(page: str) -> None:
    themes = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    in_use = set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) - {"--tone", "--amount", "--hue", "--v"}
    assert len(themes) == 2
    for theme in themes:
        assert in_use <= set(re.findall(r"(--[a-z0-9-]+):", theme))
