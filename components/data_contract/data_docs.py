"""Data Docs that load nothing: index.html is ours, and each suite has a page with Great Expectations' own rendering.

The index says what a person does next: the verdict, what is to be repaired, what became of the rows. Great Expectations' own
template loads 18 files from 8 hosts and stamps the time, so its sections stand in a page of ours. No script, no external
address, no time and no path: same rows, same bytes.
"""

import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from components.artifacts import write_text
from components.data_contract.check import ExpectationOutcome
from components.data_contract.contract_report import ContractReport, SuiteReport, most_first
from components.data_contract.docs_page import SECTIONS, page
from components.data_contract.expectations import Result, great_expectations
from components.data_contract.raw_checks import check_of_kind

VERDICTS = {"critical": ("bad", "failed"), "warning": ("warn", "warning"), "info": ("note", "note")}
MAX_SOURCES = 200
"""A folder of thousands of files would make a page of thousands of lines."""


def write_data_docs(report: ContractReport, folder: Path) -> None:
    """index.html, raw_rows.html and prepared_rows.html in `folder`."""
    write_text(folder / "index.html", _index_page(report))
    for suite in report.suites:
        write_text(folder / f"{suite.name}.html", _suite_page(suite))


def _index_page(report: ContractReport) -> str:
    parts = [_verdict(report), _rows(report), _quarantine(report), _sources(report), _languages(report)]
    return page("Data contract", "\n".join([*parts, *map(_suite, report.suites)]))


def _verdict(report: ContractReport) -> str:
    failed, warned = len(report.failures("critical")), len(report.failures("warning"))
    words = (
        f"The data {'passed' if report.success else 'failed'}: {_many(failed, 'critical failure')}, {_many(warned, 'warning')}."
    )
    links = " · ".join(f'<a href="{suite.name}.html">{suite.title}</a>' for suite in report.suites)
    verdict = f'<p class="verdict {"good" if report.success else "bad"}"><strong>{words}</strong></p>'
    repairs = "".join(
        f"<li><code>{one.name}</code> {escape(one.sentence)} {_repair(one)}</li>" for one in report.failures("critical")
    )
    todo = f"<h2>To repair</h2><ul>{repairs}</ul>" if repairs else ""
    return f"<h1>Data contract</h1>{verdict}<p>Pages of Great Expectations: {links}</p>{todo}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _rows(report: ContractReport) -> str:
    counts = report.counts
    figures = [(name.replace("_", " "), counts[name]) for name in ("rows_read", "rows_not_drawn", "rows_in", "rows_used")]
    figures.append(("rows quarantined", counts["rows_quarantined"]))
    tiles = "".join(f"<div><strong>{number:,}</strong> {escape(name)}</div>" for name, number in figures)
    prepared = counts["prepared"]
    lines = [
        (split, f"{prepared['rows'][split]:,}", f"{prepared['tokens'][split]:,}", f"{prepared['target_tokens'][split]:,}")
        for split in prepared["rows"]
    ]
    splits = _table("Rows used, by split", ("split", "rows", "tokens", "target tokens"), lines)
    return f'<h2>What became of the rows</h2><div class="tiles">{tiles}</div>{splits}'


def _quarantine(report: ContractReport) -> str:
    """By kind, with the first rows: what stands in quarantine.jsonl."""
    kinds = report.counts["quarantined_by_kind"]
    if not kinds:
        return "<p>No row is quarantined.</p>"
    repairs = {one.name: one for one in report.raw.outcomes}
    lines = [(escape(kind), f"{count:,}", _about_kind(kind, repairs)) for kind, count in most_first(kinds)]
    return _table("Quarantined rows, by kind (each one stands in quarantine.jsonl)", ("kind", "rows", "repair"), lines)


def _about_kind(kind: str, outcomes: dict[str, ExpectationOutcome]) -> str:
    outcome = outcomes[check_of_kind(kind)]
    return f"{escape(_sentence(outcome.repair))}<br><small>{_shown_rows(outcome)}</small>"


def _sources(report: ContractReport) -> str:
    sources = sorted(report.counts["by_source"].items())
    lines = [
        (f"<code>{escape(name)}</code>", *(f"{of[key]:,}" for key in ("rows_in", "rows_used", "rows_quarantined")))
        for name, of in sources[:MAX_SOURCES]
    ]
    more = f"<p>… and {len(sources) - MAX_SOURCES:,} more sources, in validation.json</p>" if len(sources) > MAX_SOURCES else ""
    return _table("Sources", ("source", "rows in", "used", "quarantined"), lines) + more


def _languages(report: ContractReport) -> str:
    languages, used = most_first(report.counts["rows_used_by_language"]), report.counts["rows_used"]
    lines = [(escape(name) or "not told", f"{count:,}", f"{100.0 * count / used:.2f} %") for name, count in languages]
    return _table("Languages of the rows used", ("language", "rows", "share"), lines) if lines else ""


def _table(caption: str, head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """`lines` are HTML already; what is a number is set to the right."""
    cells = ["".join(f"<td{_class(cell)}>{cell}</td>" for cell in line) for line in lines]
    titles = "".join(f"<th{_class(cell)}>{name}</th>" for name, cell in zip(head, lines[0], strict=True)) if lines else ""
    rows = "".join(f"<tr>{line}</tr>" for line in cells)
    return f"<h3>{caption}</h3><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def _class(cell: str) -> str:
    """Figures stand to the right; a single word is never broken, a path may be."""
    return ' class="number"' if re.fullmatch(r"[\d,.]+( %)?", cell) else ' class="word"' if re.fullmatch(r"[a-z_]+", cell) else ""


def _suite(suite: SuiteReport) -> str:
    """What is to be repaired stands first; kinds that no row has are named in one line."""
    shown = [one for one in suite.outcomes if one.column != "fault_kind" or one.severity == "critical" or not one.success]
    none = ", ".join(one.name for one in suite.outcomes if one not in shown)
    order = {severity: place for place, severity in enumerate(VERDICTS)}
    lines = "".join(map(_check, sorted(shown, key=lambda one: (one.success, order[one.severity]))))
    head = f'<h2>{suite.title}</h2><p>{suite.num_rows:,} rows. <a href="{suite.name}.html">The page of Great Expectations</a></p>'
    passed = f"<p><small>Passed, no row has such a fault: {none}</small></p>" if none else ""
    titles = "<thead><tr><th>Verdict</th><th>Check</th><th>Found</th></tr></thead>"
    return f'{head}<table class="checks">{titles}<tbody>{lines}</tbody></table>{passed}'


def _check(outcome: ExpectationOutcome) -> str:
    kind, word = ("good", "passed") if outcome.success else VERDICTS[outcome.severity]
    found = [escape(outcome.sentence)]
    if outcome.unexpected_rows:
        found.append(f"<small>{_shown_rows(outcome)}</small>")
    if not outcome.success:
        found.append(_repair(outcome))
    rule = f"<strong>{outcome.name}</strong> <small>{outcome.severity}</small><br>{escape(outcome.rule)}"
    return f'<tr><td class="{kind}">{word}</td><td>{rule}</td><td>{"<br>".join(found)}</td></tr>'


def _repair(outcome: ExpectationOutcome) -> str:
    return f"<strong>Repair:</strong> {escape(outcome.repair)}."


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _shown_rows(outcome: ExpectationOutcome) -> str:
    more = outcome.num_unexpected - len(outcome.unexpected_rows)
    shown = ", ".join(f"<code>{escape(row_id)}</code>" for row_id in outcome.unexpected_rows)
    return f"Rows: {shown}{f' and {more:,} more' if more else ''}"


def _suite_page(suite: SuiteReport) -> str:
    """Great Expectations' own sections in our page."""
    great_expectations()
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, DictLoader

    results = [_for_page(result) for result in suite.evidence]
    num_failed, num_all = len(suite.failures()), len(results)
    statistics: dict[str, float] = {"evaluated_expectations": num_all, "successful_expectations": num_all - num_failed}
    statistics |= {"unsuccessful_expectations": num_failed, "success_percent": 100.0 * (num_all - num_failed) / num_all}
    about = {"batch_spec": {"data_asset_name": suite.title}}
    result = ExpectationSuiteValidationResult(suite.success, results, suite.name, statistics=statistics, meta=about)
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    document.sections = document.sections[:-1]  # the last is about the run: its name and its time
    view: Any = DefaultJinjaPageView()
    template = page(f"{suite.title}, Great Expectations", SECTIONS.replace("TITLE", suite.title))
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": template}), view.env.loader])
    return re.sub(r'<a href="[./]*/expectations/[^"]*"\s*>(.*?)</a>', r"\1", str(view.render(document)))  # a page never written


def _for_page(result: Result) -> Any:
    """The result with its row ids where the page's own table looks for them; its tables escape nothing, so it is done here."""
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    config, found = result["expectation_config"], _escaped(result["result"])
    if found["partial_unexpected_list"]:
        column = config["kwargs"]["column"]
        pairs = zip(found["partial_unexpected_list"], found["partial_unexpected_index_list"], strict=True)
        counts = Counter(found["partial_unexpected_list"])
        found["partial_unexpected_counts"] = [{"value": value, "count": count} for value, count in counts.items()]
        found["unexpected_index_column_names"] = ["row"]
        found["unexpected_index_list"] = [{column: value, "row": row_id} for value, row_id in pairs]
    expectation = ExpectationConfiguration(
        config["type"], config["kwargs"], description=escape(config["description"], quote=False)
    )
    none = {"raised_exception": False, "exception_traceback": None, "exception_message": None}
    return ExpectationValidationResult(result["success"], expectation, found, exception_info=none)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return escape(value, quote=False) if isinstance(value, str) else value
