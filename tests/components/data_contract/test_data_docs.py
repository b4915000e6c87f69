"""Laws of the pages: they load nothing, run nothing, take no text for markup, and the same rows give the same bytes."""

import json
import os
import re
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import ROOT
from components.data_contract.contract_report import ContractReport
from components.data_contract.data_docs import MAX_SOURCES, write_data_docs

PAGES = {"index.html", "raw_rows.html", "prepared_rows.html"}


def pages_of(report: ContractReport, folder: Path) -> dict[str, str]:
    write_data_docs(report, folder)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


@pytest.fixture(scope="module")
def messy_pages(messy_report: ContractReport, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return pages_of(messy_report, tmp_path_factory.mktemp("docs"))


def test_the_pages_load_nothing_and_run_nothing(messy_pages: dict[str, str]) -> None:
    assert set(messy_pages) == PAGES
    for page in messy_pages.values():
        tags = "\n".join(re.findall(r"<[a-zA-Z][^>]*>", page))
        assert not re.search(r"<(script|link|img|iframe|object|embed|base|svg|form|video|audio)\b", tags, re.IGNORECASE)
        assert not re.search(r"\b(src|srcset|action|background|on\w+)\s*=", tags, re.IGNORECASE)
        assert not re.search(r"@import|url\(|http-equiv=.refresh", page, re.IGNORECASE)
        assert "default-src 'none'" in page  # and the browser is told so
        links = re.findall(r'href="([^"]*)"', tags)
        assert links and all(link.startswith("#section-") or link in PAGES for link in links), links


def test_a_hostile_row_id_source_or_text_is_shown_and_not_obeyed(messy_pages: dict[str, str]) -> None:
    for page in messy_pages.values():
        assert re.search(r"&lt;img src=[^<]*evil.example/\d+[^<]*&gt;&amp;amp;\{\{ 7\*7 \}\}.json:\d+", page)
        assert "<img" not in page and ".example/7 49" not in page and "&amp;49" not in page
    assert "&lt;b&gt;evil&lt;/b&gt;.json" in messy_pages["index.html"] and "<b>evil" not in messy_pages["index.html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in messy_pages["raw_rows.html"]


def test_the_pages_name_every_check_and_its_rule(messy_report: ContractReport, messy_pages: dict[str, str]) -> None:
    for suite in messy_report.suites:
        for outcome in suite.outcomes:
            assert outcome.name in messy_pages["index.html"]
            assert escape(outcome.rule, quote=False) in messy_pages[f"{suite.name}.html"]


def test_the_index_says_what_is_to_repair_before_what_is_well(messy_report: ContractReport, messy_pages: dict[str, str]) -> None:
    index = messy_pages["index.html"]
    assert "The data failed: 7 critical failures, 5 warnings." in index
    for failure in messy_report.failures("critical"):
        assert escape(failure.sentence) in index and escape(failure.repair) in index
    assert index.index("<strong>few_secrets</strong>") < index.index("<strong>splits_share_no_row</strong>")
    assert index.index("<strong>splits_share_no_row</strong>") < index.index("<strong>a_row_is_used</strong>")


def test_the_index_says_what_became_of_the_rows(messy_pages: dict[str, str]) -> None:
    index = messy_pages["index.html"]
    for figure in ("<strong>100</strong> rows in", "<strong>94</strong> rows used", "<strong>6</strong> rows quarantined"):
        assert figure in index
    for kind, count in {"empty_turn": 2, "role_order": 1, "too_long": 1, "duplicate": 1, "secret": 1}.items():
        assert f'<td class="word">{kind}</td><td class="number">{count}</td>' in index
    assert "Fill in the turn, or remove the row." in index


def test_a_page_that_is_a_pass_says_so_although_a_warning_failed(judge: Any, tmp_path: Path) -> None:
    pages = pages_of(judge.both(judge.with_broken(judge.raw_rows(), answer_is_well_formed=False)), tmp_path)
    assert "The data passed: 0 critical failures, 1 warning." in pages["index.html"]
    assert "No row is quarantined." in pages["index.html"] and "To repair" not in pages["index.html"]
    assert "Succeeded" in pages["raw_rows.html"]


def test_no_row_at_all_has_pages_too(judge: Any, tmp_path: Path) -> None:
    pages = pages_of(judge.both([]), tmp_path)
    assert "0 rows are used." in pages["index.html"] and "Failed" in pages["raw_rows.html"]


def test_a_page_of_thousands_of_sources_names_the_first_of_them(judge: Any, tmp_path: Path) -> None:
    rows = [row | {"source": f"{index:04d}.json"} for index, row in enumerate(judge.raw_rows(MAX_SOURCES + 5))]
    index = pages_of(judge.both(rows), tmp_path)["index.html"]
    assert "0199.json" in index and "0200.json" not in index and "5 more sources" in index


def test_writing_twice_changes_no_byte(messy_report: ContractReport, messy_pages: dict[str, str], tmp_path: Path) -> None:
    time.sleep(1.1)
    assert pages_of(messy_report, tmp_path) == messy_pages
    for page in messy_pages.values():
        assert not re.search(r"20\d\d-[01]\d-[0-3]\d|/work/|/tmp/|\d\d:\d\d:\d\d", page)


WRITER = """
import json, sys
from pathlib import Path
import pandas
from components.data_contract.contract_report import ContractReport
from components.data_contract.data_docs import write_data_docs
from components.data_contract.expectations import validate
from components.data_contract.raw_checks import raw_rows
from components.data_contract.tokenised_checks import prepared_rows
from components.data_params import DataContractParams, DataParams
raw, tokens = (pandas.DataFrame(rows) for rows in json.loads(Path(sys.argv[1]).read_text()))
limits = DataContractParams(quarantine=("secret", "duplicate"))
report = ContractReport(validate([raw], raw_rows(limits)), validate([tokens], prepared_rows(limits, DataParams())))
write_data_docs(report, Path(sys.argv[2]))
Path(sys.argv[2], "report.json").write_text(json.dumps(report.to_json()))
"""


def test_the_same_rows_give_the_same_bytes_in_every_process_and_nothing_else_is_written_or_said(
    judge: Any, tmp_path: Path
) -> None:
    nothing = dict.fromkeys(
        ("repeats_row", "nearly_repeats_row", "repeats_row_of_other_split", "ood_overlap", "test_overlap"), None
    )
    rows = [nothing | row for row in judge.with_broken(judge.raw_rows(), *range(9, 30), repeats_row="a:1", language="de")]
    (tmp_path / "rows.json").write_text(json.dumps([rows, judge.tokenised_rows()]))
    started = []
    for name, seed, zone, language in (("a", "1", "UTC", "C"), ("b", "2", "Asia/Tokyo", "de_DE.UTF-8")):
        home = tmp_path / f"home_{name}"
        home.mkdir()
        settings = {"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": language, "HOME": str(home), "TMPDIR": str(home)}
        command = [sys.executable, "-c", WRITER, str(tmp_path / "rows.json"), str(tmp_path / name)]
        environment = os.environ | settings | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append((home, subprocess.Popen(command, cwd=home, env=environment, text=True, **pipes)))
    for home, process in started:  # both at once: each takes ten seconds to import Great Expectations
        assert process.communicate() == ("", "")
        assert process.returncode == 0
        assert list(home.iterdir()) == []
    for file in ("report.json", *PAGES):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
