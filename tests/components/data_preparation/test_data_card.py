"""Laws of the data card: every row is counted once, figures are exact, no secret is shown, equal rows give equal bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.data.faults import FaultKind
from components.data.tokenized import SPLITS
from components.data_preparation.card_samples import MAX_CHARACTERS, MAX_REASON, MAX_TURNS, NOT_REPEATED, quarantine_samples
from components.data_preparation.card_sizes import MAX_BINS, bin_width
from components.data_preparation.data_card import write_data_card
from components.data_preparation.publish import count_rows
from components.data_preparation.quarantined_rows import write_quarantine

Make = Callable[..., Any]
SOURCES = {
    "a.jsonl": {"licence": "MIT", "weight": 2.0, "max_examples": 40},
    "b/c.json": {"origin": "someone/something@0123abc"},
    "nothing.jsonl": {},
}
SPLIT_OF = ("train", "train", "train", "validation", "test")


def mixed_rows() -> list[dict[str, Any]]:
    """60 rows of two sources: used ones of all splits and lengths, and 4 kinds of rejected ones."""
    rows: list[dict[str, Any]] = []
    for number in range(60):
        row: dict[str, Any] = {
            "source": "a.jsonl" if number < 35 else "b/c.json",
            "schema": ("alpaca", "sharegpt")[number % 2],
            "turns": [["user", f"question {number}"], ["assistant", f"answer {number}"]],
            "split": SPLIT_OF[number % 5],
            "num_tokens": 5 + 7 * number,
            "num_targets": 1 + number,
            "num_turns_cut": int(number % 9 == 0),
            "language": ("en", "de", "")[number % 3],
        }
        if number % 11 == 3:
            kind = (FaultKind.EMPTY_TURN, FaultKind.TOO_LONG, FaultKind.DUPLICATE)[number % 3]
            row |= {"fault": kind, "repeats": 0 if kind == FaultKind.DUPLICATE else -1}
        rows.append(row)
    return rows


def card_of(prepared: Any, folder: Path, **about: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    write_quarantine(prepared, folder / "quarantine.jsonl")
    write_data_card(prepared, range(320), "chatml", count_rows(prepared), folder, **about)  # type: ignore[arg-type]
    return dict(json.loads((folder / "data_card.json").read_text(encoding="utf-8")))


@pytest.fixture
def mixed(make_prepared: Make, tmp_path: Path) -> dict[str, Any]:
    prepared = make_prepared(mixed_rows(), SOURCES, {"b/c.json": 7, "nothing.jsonl": 2})
    return card_of(prepared, tmp_path / "card", max_length=512)


def test_the_sources_together_hold_every_row_that_was_counted(mixed: dict[str, Any]) -> None:
    counts, sources = mixed["counts"], mixed["sources"]
    assert counts["rows_read"] == 69 and counts["rows_in"] == 60
    for name in ("rows_read", "rows_not_drawn", "rows_in"):
        assert sum(source[name] for source in sources) == counts[name]
    for split in SPLITS:
        assert sum(source["rows_used"][split] for source in sources) == counts["rows_used"][split]
    for kind, count in counts["quarantined_by_kind"].items():
        assert sum(source["quarantined_by_kind"].get(kind, 0) for source in sources) == count
    assert sum(source["target_tokens"] for source in sources) == sum(counts["target_tokens"].values())
    for source in sources:
        assert source["rows_read"] == source["rows_in"] + source["rows_not_drawn"]
        used, rejected = source["rows_used"].values(), source["quarantined_by_kind"].values()
        assert source["rows_in"] == sum(used) + sum(rejected)
        assert sum(source["schemas"].values()) == sum(used)


def test_every_used_row_is_in_one_bin_and_has_one_language(mixed: dict[str, Any]) -> None:
    used = mixed["counts"]["rows_used"]
    for histogram in mixed["histograms"].values():
        assert all(sum(histogram[split]) == used[split] for split in SPLITS)
        assert all(len(histogram[split]) == len(histogram["edges"]) - 1 for split in SPLITS)
    assert sum(mixed["languages"].values()) == sum(used.values())
    assert set(mixed["languages"]) == {"en", "de", "undetermined"}
    assert sum(mixed["rows_cut"].values()) == mixed["counts"]["rows_cut"] > 0


def test_lengths_are_those_of_the_used_rows(mixed: dict[str, Any]) -> None:
    rows = [row for row in mixed_rows() if row["split"] == "train" and "fault" not in row]
    tokens = sorted(row["num_tokens"] for row in rows)
    figures = mixed["lengths"]["tokens"]["train"]
    assert (figures["min"], figures["max"], figures["total"]) == (tokens[0], tokens[-1], sum(tokens))
    assert figures["mean"] == round(sum(tokens) / len(tokens), 2)
    for name, share in (("median", 0.5), ("percentile_95", 0.95)):
        assert figures[name] in tokens
        assert np.mean(np.array(tokens) <= figures[name]) >= share > np.mean(np.array(tokens) < figures[name])
    assert mixed["lengths"]["target_tokens"]["train"]["total"] == mixed["counts"]["target_tokens"]["train"]
    assert mixed["lengths"]["turns"]["test"]["max"] == 2


@pytest.mark.parametrize("longest", [0, 1, 23, 24, 119, 120, 512, 2047, 131_072])
def test_bins_reach_beyond_the_longest_row_and_are_few(longest: int) -> None:
    width = bin_width(longest)
    assert longest // width + 1 <= MAX_BINS
    assert str(width).strip("0") in ("1", "2", "5")
    assert longest < MAX_BINS or longest // width + 1 > MAX_BINS // 3, "not coarser than it must be"


def test_what_is_said_of_a_source_is_kept_as_given(mixed: dict[str, Any]) -> None:
    first, second, _ = mixed["sources"]
    assert (first["licence"], first["weight"], first["max_examples"], first["origin"]) == ("MIT", 2.0, 40, None)
    assert (second["licence"], second["weight"], second["origin"]) == (None, None, "someone/something@0123abc")
    assert (mixed["chat_template"], mixed["max_length"], mixed["vocabulary_size"]) == ("chatml", 512, 320)


def test_findings_are_counts_of_rows_by_kind(make_prepared: Make, tmp_path: Path) -> None:
    mail, phone = ["email", 0, 3], ["phone", 1, 8]
    rows = [
        {"personal_data": [mail, mail, phone]},
        {"personal_data": [mail], "secrets": [["aws_access_key", 0, 9]]},
        {"encoding_faults": [["mojibake", 1, 0]], "ood_overlaps": ["sort.txt:3", "sort.txt:9", "copy.jsonl:1"]},
        {"ood_overlaps": ["sort.txt:4"], "test_overlaps": ["a.jsonl:5#2"]},
        {"ood_overlaps": ["sort.txt:5"], "split": "validation"},
        {"repeats": 0, "fault": FaultKind.DUPLICATE},
        {"repeats": 0, "split": "test"},
        {"nearly_repeats": 0},
        {"fault": FaultKind.UNREADABLE, "encoding_faults": None, "secrets": None, "personal_data": None, "num_turns": None},
    ]
    found = card_of(make_prepared(rows), tmp_path)["findings"]
    assert found["personal_data"] == {"rows": 2, "by_kind": {"email": 2, "phone": 1}}
    assert found["secrets"] == {"rows": 1, "by_kind": {"aws_access_key": 1}}
    assert found["encoding_faults"] == {"rows": 1, "by_kind": {"mojibake": 1}}
    assert found["ood_overlaps"] == {"rows": 2, "by_set": {"copy.jsonl": 1, "sort.txt": 2}}, "training rows only"
    assert found["test_overlaps"] == {"rows": 1}
    assert found["duplicates"] == {"rows": 2, "of_other_split": 1}
    assert found["near_duplicates"] == {"rows": 1}


def test_no_example_holds_a_secret_or_personal_data_or_is_held_out_or_rejected(make_prepared: Make, tmp_path: Path) -> None:
    bad = ({"secrets": [["token", 0, 1]]}, {"personal_data": [["email", 0, 1]]}, {"split": "test"}, {"fault": FaultKind.LANGUAGE})
    rows = [{"turns": [["user", f"q{number}"], ["assistant", "a"]], **bad[number % 4]} for number in range(40)]
    rows.append({"turns": [["user", "the only good one"], ["assistant", "a"]]})
    examples = card_of(make_prepared(rows), tmp_path)["examples"]
    assert [example["row"] for example in examples] == ["a.jsonl:41"]


def test_examples_are_few_of_each_source_and_stay_when_rows_are_added(make_prepared: Make, tmp_path: Path) -> None:
    def rows(source: str, count: int, first: int = 0) -> list[dict[str, Any]]:
        asked = [{"source": source, "turns": [["user", f"{source} {n}"], ["assistant", "a"]], "place": n} for n in range(count)]
        return [{**row, "content_hash": (row["place"] * 7919) % 101 + first} for row in asked]

    few = card_of(make_prepared([*rows("a.jsonl", 20), *rows("b.jsonl", 9)]), tmp_path / "few")["examples"]
    assert [example["row"].partition(":")[0] for example in few] == ["a.jsonl", "a.jsonl", "b.jsonl", "b.jsonl"]
    more = [*rows("a.jsonl", 20), *rows("b.jsonl", 9), *rows("c.jsonl", 5, first=10**6), *rows("d.jsonl", 5, first=10**6)]
    grown = card_of(make_prepared(more), tmp_path / "grown")["examples"]
    assert len(grown) == 6
    assert all(example in grown for example in few)


def test_an_example_is_shown_as_far_as_it_is_short(make_prepared: Make, tmp_path: Path) -> None:
    long, short = "x" * (MAX_CHARACTERS + 30), "short"
    turns = [["system", long], *[["user", short], ["assistant", short]] * 6]
    example = card_of(make_prepared([{"turns": turns, "num_tokens": 50, "num_targets": 9, "num_turns_cut": 2}]), tmp_path)[
        "examples"
    ][0]
    assert example["turns"][0] == {"role": "system", "text": "x" * MAX_CHARACTERS, "num_characters_left_out": 30}
    assert example["turns"][1] == {"role": "user", "text": short, "num_characters_left_out": 0}
    assert (len(example["turns"]), example["num_turns"]) == (MAX_TURNS, 13)
    assert (example["num_tokens"], example["num_target_tokens"], example["is_truncated"]) == (50, 9, True)


def test_the_first_rejected_rows_of_each_kind_are_named_with_their_reason(make_prepared: Make, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{}]
    rows += [{"fault": FaultKind.WRONG_TYPE, "reason": f"reason {number} " + "y" * 500} for number in range(5)]
    rows += [{"fault": FaultKind.DUPLICATE, "repeats": 0}]
    wrong, twice = card_of(make_prepared(rows), tmp_path)["quarantine"]
    assert (wrong["kind"], wrong["count"], twice["kind"], twice["count"]) == ("wrong_type", 5, "duplicate", 1)
    assert [row["row"] for row in wrong["rows"]] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]
    assert all(row["reason"].startswith("reason ") and len(row["reason"]) == MAX_REASON + 2 for row in wrong["rows"])
    assert twice["rows"] == [{"row": "a.jsonl:7", "reason": "repeats a.jsonl:1"}]


def test_a_reason_that_quotes_a_private_value_is_not_repeated(make_prepared: Make, tmp_path: Path) -> None:
    reason = "the role 'jane.roe@corp-mail.org' is not known" + " " * MAX_REASON
    rows = [{}, {"fault": FaultKind.UNKNOWN_ROLE, "reason": reason}, {"fault": FaultKind.UNKNOWN_ROLE, "reason": "the role 'x'"}]
    (kind,) = card_of(make_prepared(rows), tmp_path)["quarantine"]
    assert [row["reason"] for row in kind["rows"]] == [NOT_REPEATED, "the role 'x'"]
    assert "jane" not in (tmp_path / "data_card.json").read_text(encoding="utf-8")


def test_a_reason_that_is_no_text_can_still_be_written(tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    file.write_text(json.dumps({"row": "a:1", "kind": "unreadable", "reason": "half \ud83d of a pair"}) + "\n", encoding="utf-8")
    assert quarantine_samples({"unreadable": 1}, file)[0]["rows"][0]["reason"] == "half \\ud83d of a pair"


def test_equal_rows_give_equal_bytes_however_they_are_cut_into_chunks(make_prepared: Make, tmp_path: Path) -> None:
    for name, size in (("one", 3), ("other", 17)):
        card_of(make_prepared(mixed_rows(), SOURCES, rows_per_chunk=size), tmp_path / name)
    assert (tmp_path / "one" / "data_card.json").read_bytes() == (tmp_path / "other" / "data_card.json").read_bytes()


def test_a_split_without_rows_has_no_figures(make_prepared: Make, tmp_path: Path) -> None:
    card = card_of(make_prepared([{}]), tmp_path)
    assert card["lengths"]["tokens"]["test"] is None
    assert sum(card["histograms"]["tokens"]["test"]) == 0
    assert card["quarantine"] == [] and card["max_length"] is None
