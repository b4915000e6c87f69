"""Laws of the report's sections: the gate comes first, a tie reads as a tie, counts and costs add up, nothing is invented."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from components.evaluation.report import render_html, write_report
from components.evaluation.report_calibration import calibration_panels, filled_bins, reliability_rows
from components.evaluation.report_context import uncommitted
from components.evaluation.report_costs import cost_ledger, cost_rows, saved_by_cache
from components.evaluation.report_facts import ReportContext
from components.evaluation.report_sets import noise_lines, set_panels
from components.evaluation.report_tokens import places, token_section
from components.evaluation.report_verdict import find_difference
from tests.components.evaluation.fake_probe import fake_probe
from tests.components.evaluation.fake_statistics import GATE_ANSWERS, with_statistics
from tests.components.evaluation.test_report import CONTEXT, all_curves, compare, parse, render, text_of

CARD = {"lengths": {"tokens": {"train": {"total": 1_000}}}}
COSTS: dict[str, dict[str, Any]] = {
    "cache_teacher": {"work_seconds": 2.0, "peak_bytes": 10, "tokens": 500, "bytes": 10_000, "device": "cpu", "num_threads": 1},
    "post_train-sft-0": {"work_seconds": 30.0, "peak_bytes": 10, "num_input_tokens": 40_000, "device": "cpu", "num_threads": 1},
    "post_train-sft_kl-0": {
        "work_seconds": 50.0,
        "peak_bytes": 30,
        "num_input_tokens": 50_000,
        "device": "cpu",
        "num_threads": 1,
    },
    "evaluate_ood-base": {"work_seconds": 18.0, "peak_bytes": 20},
}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return compare()


@pytest.fixture(scope="module")
def full(plain: dict[str, Any]) -> dict[str, Any]:
    return with_statistics(plain)


# --- the gate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["pass", "reject", "undecided"])
def test_the_gates_verdict_comes_before_everything_else(plain: dict[str, Any], verdict: str) -> None:
    body = parse(render(with_statistics(plain, verdict))).find("body/main")
    assert body is not None
    sections = [element for element in body if element.tag == "section"]
    assert sections[0].get("aria-label") == "Gate"
    assert " ".join("".join(sections[0].itertext()).split()).split()[1] == verdict


def test_every_answer_shows_its_numbers_and_its_outcome(full: dict[str, Any]) -> None:
    page = parse(render(full))
    region = next(element for element in page.iter("div") if element.get("aria-label") == "The gate's answers")
    rows = [" ".join("".join(row.itertext()).split()) for row in region.findall("table/tbody/tr")]
    assert len(rows) == len(GATE_ANSWERS)
    assert "met" in rows[0] and "+0.300 [+0.250, +0.350]" in rows[0] and "0.040" in rows[0] and "against the base" in rows[0]
    assert "missed" in rows[1] and "−0.020" in rows[1] and "against the champion" in rows[1]
    assert "undecided" in rows[2] and "not measured" in rows[2] and "ood/copy" in rows[2]


def as_before(comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison of the time before corrections, sets, noise and the gate."""
    new = ("set_differences", "noise_floor", "reliability", "left_out", "gate", "champion")
    old = {key: value for key, value in comparison.items() if key not in new}
    kept = ("metric", "method", "reference", "value", "low", "high", "verdict")
    return {**old, "differences": [{key: one[key] for key in kept} for one in comparison["differences"]]}


def test_an_older_comparison_renders_without_the_new_sections(plain: dict[str, Any]) -> None:
    read = text_of(render(as_before(plain)))
    for words in ("The gate", "Set by set against the base", "Reliability", "What it cost", "What chance alone does"):
        assert words not in read


# --- differences ----------------------------------------------------------------------------------------------------


def test_a_difference_turned_round_turns_its_corrected_interval_too(full: dict[str, Any]) -> None:
    there, back = (find_difference(full, "ood_accuracy", *pair) for pair in (("sft", "sft_kl"), ("sft_kl", "sft")))
    assert there is not None and back is not None
    assert (there["adjusted_low"], there["adjusted_high"]) == (-back["adjusted_high"], -back["adjusted_low"])


def test_corrected_verdicts_are_said_to_be(plain: dict[str, Any], full: dict[str, Any]) -> None:
    assert "are tested one by one" in text_of(render(as_before(plain))) and "are tested one by one" not in text_of(render(full))
    assert "tested at once, and verdicts allow for it" in text_of(render(full))


def test_the_champions_single_run_is_not_taken_for_one_seed_of_all(full: dict[str, Any]) -> None:
    assert "not the luck of training" not in text_of(render(full))


def test_ties_of_the_sets_are_counted_and_marked_as_ties(full: dict[str, Any]) -> None:
    panels = {panel["metric"]: panel for panel in set_panels(full)}
    lines = [line for card in panels["accuracy"]["cards"] for line in card["lines"]]
    number = {verdict: sum(line["verdict"] == verdict for line in lines) for verdict in ("better", "worse", "tie")}
    assert panels["accuracy"]["counted"] == (
        f"Of {len(lines)} differences to the base {number['better']} are better, {number['worse']} worse, "
        f"{number['tie']} are ties."
    )
    page = parse(render(full))
    marks = [element.get("aria-label") for element in page.iter("span") if "mark" in (element.get("class") or "").split()]
    assert marks.count("tie") == 2 * number["tie"]


def test_a_large_gain_in_domain_does_not_flatten_the_other_sets(full: dict[str, Any]) -> None:
    cards = {card["name"]: card for card in set_panels(full)[0]["cards"]}
    assert list(cards) == ["in_domain", "base_text", "ood/copy"]
    assert cards["in_domain"]["reach"] == "0.85" or float(cards["in_domain"]["reach"]) == 0.85
    assert float(cards["ood/copy"]["reach"]) == 0.15
    assert cards["ood/copy"]["lines"][0]["low"] == 2.0, "the widest interval reaches the edge"


def test_rows_that_could_not_be_asked_are_said(full: dict[str, Any]) -> None:
    read = text_of(render(full))
    assert "ood/copy: 3 too long" in read and "ood/sort: " not in read.partition("could not be asked")[2][:80]


def test_a_noise_floor_that_is_not_known_is_not_told(full: dict[str, Any]) -> None:
    lines = noise_lines(full)
    assert any(line.startswith("OOD accuracy: seeds alone") and "± 0.017" in line for line in lines)
    assert not any("In-domain nll: seeds alone" in line for line in lines)
    assert any(line.startswith("In-domain accuracy: the smallest true difference") and "0.040" in line for line in lines)


# --- calibration ----------------------------------------------------------------------------------------------------


def test_every_method_with_bins_has_a_diagram_with_its_counts(full: dict[str, Any]) -> None:
    panels = {panel["method"]: panel for panel in calibration_panels(full)}
    assert set(panels) == set(full["reliability"])
    for panel in panels.values():
        circles = list(ElementTree.fromstring(panel["svg"]).iter("circle"))
        assert len(circles) == len(panel["totals"]), "a dot per bin that holds something"
    assert "in-domain: 1,234 answers, 0.750 sure, 0.900 right" in panels["sft"]["svg"]
    assert panels["sft"]["totals"] == {"in-domain": 1234}, "sft has no OOD bins"


def test_bins_under_the_names_of_an_evaluation_are_read_as_well() -> None:
    found = filled_bins([{"lower": 0.0, "upper": 0.1, "confidence": 0.05, "accuracy": 0.2, "num_tokens": 7}])
    assert found == [{"low": 0.0, "high": 0.1, "confidence": 0.05, "accuracy": 0.2, "num": 7}]


# --- costs ----------------------------------------------------------------------------------------------------------


def test_the_ledger_adds_up_over_cells() -> None:
    ledger = cost_ledger(COSTS, {"sft_kl"}, CARD)
    assert ledger is not None
    lines = {line["stage"]: line for line in ledger["stages"]}
    assert list(lines) == ["cache_teacher", "post_train", "evaluate_ood"]
    assert ledger["total"] == "100.0 s" and lines["post_train"]["share"] == 80.0
    assert lines["post_train"] | {"device": ""} == lines["post_train"] | {
        "cells": 2,
        "time": "80.0 s",
        "tokens": "90,000",
        "device": "",
    }
    assert lines["post_train"]["per_second"] == "1,125" and lines["post_train"]["peak"] == "30 bytes"
    assert ledger["cache"] == {"bytes": "10.0 kB", "tokens": "500", "bytes_per_token": "20.0"}


def test_the_cache_saves_the_passes_of_the_methods_that_ask_it_alone() -> None:
    saved = saved_by_cache(COSTS, {"sft_kl"}, CARD)
    assert saved is not None
    assert (saved["cells"], saved["online_tokens"], saved["captured_tokens"], saved["factor"]) == (1, 50_000, 1_000, 50.0)
    assert (saved["capture_time"], saved["online_time"]) == ("2.0 s", "100.0 s"), "2 s for 1,000 tokens"
    assert saved_by_cache(COSTS, set(), CARD) is None and saved_by_cache(COSTS, {"sft_kl"}, None) is None


def test_seconds_are_on_the_page_and_in_one_table_alone(full: dict[str, Any], tmp_path: Path) -> None:
    slow = {name: {**cost, "work_seconds": cost["work_seconds"] * 7.77} for name, cost in COSTS.items()}
    for folder, costs in (("fast", COSTS), ("slow", slow)):
        write_report(tmp_path / folder, full, all_curves_of(full), CONTEXT, costs=costs)
    differ = {
        file.name for file in (tmp_path / "fast").iterdir() if file.read_bytes() != (tmp_path / "slow" / file.name).read_bytes()
    }
    assert differ == {"report.html", "costs.csv"}
    assert [row["cell"] for row in cost_rows(COSTS)] == ["", "sft-0", "sft_kl-0", "base"]


def all_curves_of(comparison: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    trained = {name: method for name, method in comparison["methods"].items() if name != "champion"}
    return all_curves({**comparison, "methods": trained})


# --- tokens, reproduction, metrics ----------------------------------------------------------------------------------


def test_an_example_is_shown_before_during_and_after(full: dict[str, Any]) -> None:
    made = fake_probe("uncertainty_aware", num_rows=12)
    examples = token_section(full, {full["candidate"]["model"]: made})
    assert 0 < len(examples) <= 2
    steps = [step["step"] for step in made["examples"][0]["steps"]]
    shown = [line["step"] for line in examples[0]["lines"]]
    assert shown[0] == steps[0] and shown[-1] == steps[-1] and len(shown) == min(3, len(steps))
    page = render_html(full, {}, CONTEXT, {full["candidate"]["model"]: made})
    assert "Token by token" in text_of(page) and parse(page) is not None


def test_no_step_is_shown_twice() -> None:
    assert [places(number) for number in (1, 2, 3, 7)] == [[0], [0, 1], [0, 1, 2], [0, 3, 6]]


def test_the_command_names_the_commit_and_what_it_lacks(plain: dict[str, Any]) -> None:
    read = text_of(render(plain))
    assert f"git checkout {CONTEXT.git_commit} && make repro" in read and "had been changed since" not in read
    dirty = ReportContext("b", "d", 1, "make repro", git_commit="abc", uncommitted=("params.yaml",))
    assert "params.yaml had been changed since" in text_of(render(plain, dirty))
    assert "git checkout" not in text_of(render(plain, ReportContext("b", "d", 1, "make repro")))


def test_many_uncommitted_paths_are_counted() -> None:
    assert uncommitted(None) == [] and uncommitted(" M params.yaml\n?? flows/a.py") == ["params.yaml", "flows/a.py"]
    assert uncommitted("\n".join(f" M {n}" for n in range(7))) == ["0", "1", "2", "3", "3 more"]


def test_metrics_hold_the_headline_and_the_gate(full: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, full, {}, CONTEXT)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["gate"]["verdict"] == "reject"
    assert metrics["gate"]["in_domain_superiority/base"] == {"difference": 0.3, "room": 0.25}
    assert metrics["gate"]["ood_non_inferiority/champion"] == {"difference": -0.1, "room": -0.1}
    assert "ood_set_non_inferiority/base/ood/copy" not in metrics["gate"], "what was not measured has no figure"
    assert {len(values) for name, values in metrics.items() if name != "gate"} <= {6, 7} and "champion" in metrics


def test_the_full_page_needs_nothing_else_and_is_small(full: dict[str, Any]) -> None:
    page = render_html(full, {}, CONTEXT, {full["candidate"]["model"]: fake_probe("uncertainty_aware", num_rows=12)}, None, COSTS)
    assert len(page.encode()) < 1_500_000 and parse(page) is not None
    assert set(re.findall(r"\w+://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "None" not in text_of(page) and "nan" not in text_of(page).split()
    assert len(reliability_rows(full)) == 2 * len(full["reliability"]) - 1
