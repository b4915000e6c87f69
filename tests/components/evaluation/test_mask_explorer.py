"""Laws of the mask explorer: its shares are those of a literal loop over the tokens, groups add up, the page stands alone."""

import csv
import itertools
import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.data.tokenized import FlatRows
from components.errors import DataError
from components.evaluation.mask_explorer import render_explorer, write_explorer
from components.evaluation.mask_outcomes import KEEPS, SELECTS, keep_threshold, study, table_rows
from components.evaluation.mask_tokens import (
    MAX_SOURCES,
    POSITIONS,
    Grouping,
    TokenTable,
    gradient_mass,
    group_classes,
    group_positions,
    group_sources,
    places_in_turn,
    read_tokens,
    turn_starts,
)
from components.params import ObjectiveParams
from components.uncertainty.selection import quantile_threshold, select_tokens

NUM_TOKENS = 400
EVIL = "</script><script>alert(1)</script>&.json"


@pytest.fixture(scope="module")
def table() -> TokenTable:
    """Scores with ties (whole tenths) and without, groups of unequal size, one of them empty."""
    draw = np.random.default_rng(0)
    nll_N = draw.exponential(1.5, NUM_TOKENS)
    groupings = {
        "dataset": Grouping(("a.json", EVIL), draw.integers(0, 2, NUM_TOKENS)),
        "class": Grouping(("end of turn", "first", "format", "digit", "word"), draw.choice([0, 1, 2, 4], NUM_TOKENS)),
        "position": Grouping(tuple(name for name, _ in POSITIONS), draw.integers(0, 5, NUM_TOKENS)),
    }
    return TokenTable({"teacher_nll": nll_N, "entropy": draw.integers(0, 30, NUM_TOKENS) / 10}, gradient_mass(-nll_N), groupings)


def render(table: TokenTable) -> str:
    return render_explorer(table, {score: study(table, score) for score in table.scores})


@pytest.fixture(scope="module")
def rows(table: TokenTable) -> list[dict[str, Any]]:
    return table_rows(table, {score: study(table, score) for score in table.scores})


@pytest.fixture(scope="module")
def page(table: TokenTable) -> str:
    return render(table)


def flat_rows(marks: list[list[bool]], sources: list[str] | None = None) -> FlatRows:
    lengths = [len(row) for row in marks]
    return FlatRows(
        sources=sources or ["a"] * len(marks),
        fingerprints=[str(place) for place in range(len(marks))],
        row_starts=np.array([0, *np.cumsum(lengths)]),
        input_ids=np.arange(sum(lengths), dtype=np.int32),
        is_target=np.array([mark for row in marks for mark in row], dtype=bool),
    )


def embedded(page: str) -> dict[str, Any]:
    script = next(element for element in ElementTree.fromstring(page).iter("script") if element.get("id") == "outcomes")
    return dict(json.loads(script.text or ""))


def test_rows_without_a_target_are_refused_with_the_command_that_repairs_it(tmp_path: Path) -> None:
    for marks in ([[False, False], [False]], [[True]]):  # nothing predicts a row's first token
        with pytest.raises(DataError, match=r"has a target token.*data\.path.*data\.max_length.*dvc repro explore_mask"):
            read_tokens(flat_rows(marks), tmp_path / "no cache is read", None)  # type: ignore[arg-type]


def test_gradient_mass_is_the_L1_norm_of_the_gradient_on_the_logits() -> None:
    logits_NV = torch.randn(6, 9, dtype=torch.double, requires_grad=True)
    labels_N = torch.arange(6)
    torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum").backward()
    assert logits_NV.grad is not None
    label_logprob_N = logits_NV.detach().log_softmax(1)[torch.arange(6), labels_N].numpy()
    assert gradient_mass(label_logprob_N) == pytest.approx(logits_NV.grad.abs().sum(1).numpy())


def test_the_table_is_a_literal_loop_over_the_tokens(table: TokenTable, rows: list[dict[str, Any]]) -> None:
    for row in random.Random(0).sample(rows, 400):
        scores_N = torch.from_numpy(table.scores[row["score"]])
        selected = select_tokens(scores_N, row["threshold_nats"], row["select"]).tolist()
        grouping = table.groupings.get(row["by"])
        tokens = kept = mass = kept_mass = 0.0
        for token in range(NUM_TOKENS):
            if grouping is None or grouping.names[grouping.index_N[token]] == row["group"]:
                tokens, mass = tokens + 1, mass + table.mass_N[token]
                if selected[token]:
                    kept, kept_mass = kept + 1, kept_mass + table.mass_N[token]
        assert row["num_tokens"] == tokens
        assert row["tokens_kept"] == pytest.approx(kept / tokens if tokens else 0, abs=1e-6)
        assert row["gradient_mass_kept"] == pytest.approx(kept_mass / mass if tokens else 0, abs=1e-6)
        assert row["gradient_mass"] == pytest.approx(mass, abs=1e-4)


def test_the_groups_of_every_kind_add_up_to_all_tokens(rows: list[dict[str, Any]]) -> None:
    sums: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        key = (row["score"], row["select"], row["rule"], row["threshold_nats"], row["by"])
        found = sums.setdefault(key, {"kept": 0.0, "mass": 0.0, "tokens": 0.0})
        found["kept"] += row["tokens_kept"] * row["num_tokens"]
        found["mass"] += row["gradient_mass_kept"] * row["gradient_mass"]
        found["tokens"] += row["num_tokens"]
    for key, found in sums.items():
        assert found == pytest.approx(sums[(*key[:-1], "all")], abs=0.02)


def test_keeping_more_tokens_keeps_more_gradient_mass(rows: list[dict[str, Any]]) -> None:
    for score in ("teacher_nll", "entropy"):
        for select in SELECTS:
            own = [row for row in rows if (row["score"], row["select"], row["by"], row["rule"]) == (score, select, "all", "keep")]
            assert [row["keep"] for row in own] == list(KEEPS)
            masses = [row["gradient_mass_kept"] for row in own]
            assert masses == sorted(masses)


def test_by_the_loss_the_high_end_has_more_than_its_share_of_the_mass_and_the_low_end_less(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if (row["score"], row["by"]) == ("teacher_nll", "all"):
            gap = row["gradient_mass_kept"] - row["tokens_kept"]
            assert gap >= 0 if row["select"] == "high" else gap <= 0


@pytest.mark.parametrize("select", SELECTS)
def test_the_threshold_of_a_keep_is_the_objective_s(table: TokenTable, select: Any) -> None:
    for scores_N in table.scores.values():
        for keep in (0.001, *KEEPS, 1.0):
            wanted = quantile_threshold(torch.from_numpy(scores_N), keep, select)
            assert keep_threshold(np.sort(scores_N), keep, select) == pytest.approx(wanted)


def test_the_slider_moves_in_steps_of_half_a_per_cent_and_shows_exact_shares(table: TokenTable, page: str) -> None:
    given = embedded(page)["teacher_nll"]
    threshold_E = study(table, "teacher_nll").threshold_E
    assert given["thresholds"] == pytest.approx(threshold_E.tolist(), rel=1e-5)
    for select in SELECTS:
        shares = given[select]["tokens"][0]
        assert max(abs(one - other) for one, other in itertools.pairwise(shares)) <= 51, "hundredths of a per cent"
        for threshold, share in zip(threshold_E, shares, strict=True):
            selected_N = select_tokens(torch.from_numpy(table.scores["teacher_nll"]), float(threshold), select)
            assert share == round(1e4 * float(selected_N.double().mean()))


def test_the_page_stands_alone_and_escapes_names(page: str) -> None:
    root = ElementTree.fromstring(page)
    for element in root.iter():
        assert element.tag not in ("link", "iframe", "img", "object", "embed", "image")
        assert element.get("src") is None and element.get("href") is None
    assert "://" not in page and "@import" not in page and "url(" not in page and "<script>alert" not in page
    assert len(list(root.iter("script"))) == 2
    assert EVIL in ["".join(head.itertext()) for head in root.iter("th")]


def test_without_javascript_the_page_shows_half_of_the_tokens_and_every_keep(page: str) -> None:
    root = ElementTree.fromstring(page)
    said = re.sub(r"\s+", " ", " ".join(root.find("body").itertext()))  # type: ignore[union-attr]
    assert "are 50.0 % of the tokens and hold" in said
    tables = [found for found in root.iter("details")]
    assert len(tables) == 4
    for found in tables:
        assert [row.findtext("th") for row in found.findall("div/table/tbody/tr")] == [f"{keep:.2f}" for keep in KEEPS]


def test_the_line_for_params_yaml_is_one_that_ballast_takes(page: str) -> None:
    import yaml

    from components.objectives.resolve import resolve

    found = re.search(r'id="recipe">(.*?)</code>', page)
    assert found is not None
    assert resolve("my_mask", ObjectiveParams(**yaml.safe_load(found[1])["my_mask"])).threshold is not None
    for score, given in embedded(page).items():
        for select in SELECTS:
            params = ObjectiveParams(preset=given["preset"], score=score, select=select, threshold_nats=1.0)  # type: ignore[arg-type]
            assert resolve("my_mask", params).score == score


def test_equal_tables_give_equal_bytes_and_a_summary(table: TokenTable, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    summary = write_explorer(tmp_path / "one", table)
    write_explorer(tmp_path / "two", table)
    for name in ("explorer.html", "table.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert summary["tokens"] == NUM_TOKENS and 0.5 < summary["gradient_mass_in_top_half_by_teacher_nll"] <= 1
    lines = list(csv.DictReader((tmp_path / "one" / "table.csv").read_text().splitlines()))
    assert len(lines) == len(rows)


def test_the_page_of_a_large_table_stays_small() -> None:
    draw = np.random.default_rng(1)
    size = 200_000
    nll_N = draw.exponential(1.5, size)
    groupings = {
        "dataset": Grouping(tuple(f"{number}.json" for number in range(MAX_SOURCES)), draw.integers(0, MAX_SOURCES, size)),
        "class": Grouping(("end of turn", "first", "format", "digit", "word"), draw.integers(0, 5, size)),
        "position": Grouping(tuple(name for name, _ in POSITIONS), draw.integers(0, 5, size)),
    }
    table = TokenTable({"teacher_nll": nll_N, "entropy": nll_N[::-1]}, gradient_mass(-nll_N), groupings)
    assert len(render(table).encode()) < 600_000


# --- the groups a token is in ---------------------------------------------------------------------------------------


def test_places_count_from_the_start_of_each_turn_and_each_row() -> None:
    rows = flat_rows([[False, True, True, False, True], [True, True], [False, True]])
    assert places_in_turn(rows)[rows.is_target].tolist() == [1, 2, 1, 1, 2, 1]
    assert turn_starts(rows).tolist() == [False, True, False, False, True, True, False, False, True]


def test_places_are_counted_in_five_groups() -> None:
    grouping = group_positions(np.array([1, 2, 4, 5, 16, 17, 64, 65, 10_000]))
    assert [grouping.names[index] for index in grouping.index_N] == [
        *("first", "2 to 4", "2 to 4", "5 to 16", "5 to 16", "17 to 64", "17 to 64", "65 and later", "65 and later")
    ]


def test_of_many_files_the_largest_keep_their_names() -> None:
    num_files = MAX_SOURCES + 5
    marks = [[False, *[True] * (number + 1)] for number in range(num_files)]
    rows = flat_rows(marks, [f"file{number:02}" for number in range(num_files)])
    grouping = group_sources(rows, rows.is_target)
    assert len(grouping.names) == MAX_SOURCES and grouping.names[0] == f"file{num_files - 1:02}"
    assert grouping.names[-1] == "other (6 files)"
    counts = np.bincount(grouping.index_N, minlength=MAX_SOURCES)
    assert counts.tolist() == [*range(num_files, 6, -1), sum(range(1, 7))]
    few = flat_rows([[True, True], [True]], ["b", "a"])
    assert group_sources(few, few.is_target).names == ("b", "a")


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace"])
def test_classes_are_told_from_the_text_whatever_the_tokenizer(make_tokenizer: Callable[..., Any], kind: str) -> None:
    tokenizer = make_tokenizer(kind, "llama3")
    ids = tokenizer("the 1 .", add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id, ids[0]]
    grouping = group_classes(np.array(ids, dtype=np.int32), np.array([*[False] * (len(ids) - 1), True]), tokenizer)
    names = [grouping.names[index] for index in grouping.index_N]
    assert names[-2:] == ["end of turn", "first"]
    assert {"word", "digit", "format"} >= set(names[:-2]) and names[0] in ("word", "format")
    assert "word" in names and "digit" in names


def test_an_empty_group_keeps_nothing_and_breaks_nothing(rows: list[dict[str, Any]]) -> None:
    empty = [row for row in rows if row["group"] == "digit"]
    assert empty and all(
        row["num_tokens"] == 0 and row["tokens_kept"] == 0 and math.isfinite(row["gradient_mass"]) for row in empty
    )
