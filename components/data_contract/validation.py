"""The gate over prepared rows: one Great Expectations suite, its report, its pages.

A row is summarised in a flat `RowSummary` (list columns crash Great Expectations), all rows make one pandas frame, and a check
is one expectation on one column. A failed `critical` check fails the data, a failed `warning` is only reported. An expectation
that crashes says nothing about the data: that is an error of ours, never a failure of the rows.

The only module that imports great_expectations (5 to 9 seconds), inside functions, with its analytics and progress bars off
and an ephemeral context, which writes no file. Report and pages hold no time and no path: same rows, same bytes.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Literal

from components.artifacts import write_text
from components.errors import BallastError, DataError
from components.params import DataParams

Severity = Literal["critical", "warning"]
Result = dict[str, Any]
"""What Great Expectations says of one expectation, as plain JSON."""

MAX_NAMED_ROWS = 20
MAX_ROWS_IN_MESSAGE = 5


class CrashedExpectationError(BallastError):
    """An expectation could not be evaluated: nothing is known about the data."""


@dataclass(frozen=True)
class RowSummary:
    """What the checks need to know of one prepared row; `row_id` says where it came from (file:line)."""

    row_id: str
    split: str
    source: str
    schema: str
    num_turns: int
    num_tokens: int
    num_target_tokens: int
    starts_with_user: bool
    ends_with_assistant: bool
    end_of_turn_is_target: bool
    prompt_characters: int
    target_characters: int
    fingerprint: str
    num_ood_overlaps: int
    has_replacement_character: bool
    answer_is_well_formed: bool | None
    """GSM8K: is there a `#### answer`; None where the schema has no such rule."""


@dataclass(frozen=True)
class Check:
    """One expectation: `column` lies in `interval` (None: is empty) in all rows but a fraction `allowed` of them.

    Without a column it asks for at least one row. `fault` goes on from "3 of 50 rows".
    """

    name: str
    severity: Severity
    column: str | None
    interval: tuple[float, float] | None
    rule: str
    fault: str
    repair: str
    allowed: float = 0.0


@dataclass(frozen=True)
class ExpectationOutcome:
    """`sentence` is what was found, for a person; `unexpected_rows` are the ids of the first 20."""

    name: str
    column: str | None
    severity: Severity
    success: bool
    num_unexpected: int
    unexpected_percent: float
    unexpected_rows: tuple[str, ...]
    rule: str
    sentence: str
    repair: str


@dataclass(frozen=True)
class ValidationReport:
    """`evidence` is Great Expectations' own results, for its page; it is not part of the JSON."""

    num_rows: int
    num_rows_in: int
    num_rejected: int
    outcomes: tuple[ExpectationOutcome, ...]
    evidence: tuple[Result, ...] = field(repr=False, compare=False)

    @property
    def success(self) -> bool:
        return not self.failures("critical")

    def failures(self, severity: Severity | None = None) -> tuple[ExpectationOutcome, ...]:
        return tuple(one for one in self.outcomes if not one.success and severity in (None, one.severity))

    def to_json(self) -> dict[str, Any]:
        """For write_json: plain values that follow from the rows and the limits alone."""
        counts = {"num_rows": self.num_rows, "num_rows_in": self.num_rows_in, "num_rejected": self.num_rejected}
        expectations = [asdict(one) | {"unexpected_rows": list(one.unexpected_rows)} for one in self.outcomes]
        return {"success": self.success, **counts, "expectations": expectations}

    def raise_if_failed(self) -> None:
        failures = self.failures("critical")
        if failures:
            head = f"The data failed {len(failures)} of {len(self.outcomes)} checks, so nothing may be trained on it."
            raise DataError("\n".join([head, *map(_explain, failures)]))


def validate_rows(rows: Sequence[RowSummary], *, num_rows_in: int, num_rejected: int, limits: DataParams) -> ValidationReport:
    """Run every check; `num_rows_in` rows were read, and `num_rejected` of them never became a RowSummary."""
    checks, rejection = _row_checks(limits), _rejection_check(limits)
    rejected_fraction = num_rejected / num_rows_in if num_rows_in else 0.0
    results = _run(checks, _columns(rows), [row.row_id for row in rows])
    results |= _run([rejection], {rejection.column: [rejected_fraction]}, ["all rows read"])
    outcomes = [_row_outcome(check, results[check.name], len(rows)) for check in checks]
    outcomes.append(_outcome(rejection, results[rejection.name], num_rejected, num_rows_in, ()))
    return ValidationReport(len(rows), num_rows_in, num_rejected, tuple(outcomes), tuple(results[one.name] for one in outcomes))


def write_data_docs(report: ValidationReport, folder: Path) -> None:
    """Data Docs that load nothing: index.html (ours: verdict, rows, repairs) and validation.html (Great Expectations' page)."""
    write_text(folder / "index.html", _index_page(report))
    write_text(folder / "validation.html", _great_expectations_page(report))


def _row_checks(limits: DataParams) -> tuple[Check, ...]:
    longest = limits.max_length
    lengthen = f"raise data.max_length (now {longest}) in params.yaml, or shorten or remove these rows"
    return (
        Check("rows_not_empty", "critical", None, None, "At least one row is left.", "are left",
              "check data.path in params.yaml; if every row was too long, raise data.max_length"),
        Check("target_tokens_in_range", "critical", "num_target_tokens", (1, longest),
              f"Every row has 1 to {longest} target tokens.", f"have no target token or more than {longest}",
              f"a row without target tokens teaches nothing (an empty answer, or one that was cut off): {lengthen}"),
        Check("rows_fit", "critical", "num_tokens", (0, longest),
              f"Every row has at most {longest} tokens (data.max_length).", f"have more than {longest} tokens", lengthen),
        Check("starts_with_user", "critical", "starts_with_user", (1, 1),
              "Every conversation starts with the user.", "do not start with the user",
              "put a user message first in these rows (only a system message may stand before it), or remove them"),
        Check("ends_with_assistant", "critical", "ends_with_assistant", (1, 1),
              "Every conversation ends with the assistant.", "do not end with the assistant",
              "end these rows with the answer that is to be learnt, or remove them"),
        Check("end_of_turn_is_target", "critical", "end_of_turn_is_target", (1, 1),
              "The end of every assistant turn is a target token.", "never teach the model to stop",
              f"set data.chat_template to one that closes the assistant's turn; where the end was cut off, {lengthen}"),
        Check("rows_not_repeated", "critical", "repeats_row", None,
              f"{_at_most(limits.max_duplicate_fraction)} may repeat an earlier row (data.max_duplicate_fraction).",
              "repeat an earlier row", "remove the repeats, or raise data.max_duplicate_fraction in params.yaml",
              limits.max_duplicate_fraction),
        Check("no_ood_overlap", "critical", "num_ood_overlaps", (0, 0),
              f"{_at_most(limits.max_ood_overlap_fraction)} may share text with an OOD item (data.max_ood_overlap_fraction).",
              "share text with an OOD item", "remove these rows (what they teach would pass for not forgetting),"
              " or raise data.max_ood_overlap_fraction in params.yaml", limits.max_ood_overlap_fraction),
        Check("splits_share_no_row", "warning", "repeats_row_of_other_split", None,
              "No row stands in two splits.", "stand in another split too",
              "remove the repeats: a test row that was trained on flatters the in-domain results"),
        Check("no_replacement_characters", "warning", "has_replacement_character", (0, 0),
              "No row holds the replacement character U+FFFD.", "hold the replacement character U+FFFD",
              "the text was decoded wrongly before it came here: export it again as UTF-8"),
        Check("answers_well_formed", "warning", "answer_is_well_formed", (1, 1),
              "Every GSM8K answer ends with '#### answer'.", "do not end with '#### answer'",
              "write the final answer after '####', or it cannot be scored"),
    )  # fmt: skip


def _rejection_check(limits: DataParams) -> Check:
    limit = limits.max_rejected_fraction
    rule = f"{_at_most(limit)} may be rejected (data.max_rejected_fraction)."
    repair = "mend the rejected rows, or raise data.max_rejected_fraction in params.yaml"
    return Check("few_rows_rejected", "critical", "rejected_fraction", (0, limit), rule, "were rejected", repair)


def _columns(rows: Sequence[RowSummary]) -> dict[str | None, list[Any]]:
    """The frame: the fields of RowSummary, and the earlier row (of another split) with the same fingerprint."""
    columns: dict[str | None, list[Any]] = {one.name: [getattr(row, one.name) for row in rows] for one in fields(RowSummary)}
    for name, values in columns.items():  # an expectation passes over what is missing
        assert name == "answer_is_well_formed" or None not in values, f"{name} is None in a RowSummary"
    first: dict[str, RowSummary] = {}
    pairs = [(row, first.setdefault(row.fingerprint, row)) for row in rows]
    columns["repeats_row"] = [other.row_id if other is not row else None for row, other in pairs]
    columns["repeats_row_of_other_split"] = [other.row_id if other.split != row.split else None for row, other in pairs]
    return columns


def _run(checks: Sequence[Check], columns: dict[str | None, list[Any]], row_ids: Sequence[str]) -> dict[str, Result]:
    """The result of each check, by its name.

    Row ids are the index of the frame: as `unexpected_index_column_names` they would cost 30 microseconds per unexpected row.
    """
    gx = _great_expectations()
    import pandas

    frame = pandas.DataFrame({name: pandas.Series(values, dtype=_dtype(values)) for name, values in columns.items()})
    frame.index = pandas.Index(row_ids, dtype=object)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("prepared").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite("prepared_rows", expectations=[_expectation(gx.expectations, check) for check in checks])
    summary = {"result_format": "SUMMARY", "partial_unexpected_count": MAX_NAMED_ROWS, "return_unexpected_index_query": False}
    results: list[Result] = [one.to_json_dict() for one in batch.validate(suite, result_format=summary).results]
    for result in results:
        _raise_if_crashed(result, gx.__version__)
    return {result["expectation_config"]["meta"]["check"]: result for result in results}  # their order is not the suite's


def _great_expectations() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    import great_expectations
    import great_expectations.expectations

    return great_expectations


def _dtype(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values}
    return "int64" if kinds == {int} else "float64" if kinds == {float} else "object"


def _expectation(expectations: Any, check: Check) -> Any:
    about = {"severity": check.severity, "description": f"{check.rule} [{check.severity}]", "meta": {"check": check.name}}
    if check.column is None:
        return expectations.ExpectTableRowCountToBeBetween(min_value=1, **about)
    mostly = round(1.0 - check.allowed, 12)  # 1 - .7 is .30000000000000004
    if check.interval is None:
        return expectations.ExpectColumnValuesToBeNull(column=check.column, mostly=mostly, **about)
    smallest, largest = check.interval
    kwargs = {"column": check.column, "min_value": smallest, "max_value": largest, "mostly": mostly}
    return expectations.ExpectColumnValuesToBeBetween(**kwargs, **about)


def _raise_if_crashed(result: Result, version: str) -> None:
    """A crash leaves `success: false`, as bad data does; only `exception_info` tells (one record, or one for each metric)."""
    info = result["exception_info"]
    for record in [info] if "raised_exception" in info else info.values():
        if record["raised_exception"]:
            cause = (record["exception_traceback"] or "").strip().rpartition("\n")[2] or record["exception_message"]
            name = result["expectation_config"]["meta"]["check"]
            raise CrashedExpectationError(
                f"The check {name!r} crashed, so nothing is known about the data: {cause}\n"
                f"This is a fault of Ballast or of great_expectations {version}, not of your rows: report it with this message."
            )


def _row_outcome(check: Check, result: Result, num_rows: int) -> ExpectationOutcome:
    found = result["result"]
    if check.column is None:
        return _outcome(check, result, 0, num_rows, ())
    row_ids = tuple(str(row_id) for row_id in found["partial_unexpected_index_list"])
    return _outcome(check, result, found["unexpected_count"], num_rows - found.get("missing_count", 0), row_ids)


def _outcome(check: Check, result: Result, num_unexpected: int, num_judged: int, row_ids: tuple[str, ...]) -> ExpectationOutcome:
    percent = 100.0 * num_unexpected / num_judged if num_judged else 0.0
    counts = f"{num_unexpected:,} of {num_judged:,} rows ({percent:.2f} %)" if check.column else f"{num_judged:,} rows"
    about = (check.name, check.column, check.severity, result["success"])
    return ExpectationOutcome(*about, num_unexpected, percent, row_ids, check.rule, f"{counts} {check.fault}.", check.repair)


def _explain(outcome: ExpectationOutcome) -> str:
    lines = [f"* {outcome.name}: {outcome.sentence} {outcome.rule}"]
    if shown := outcome.unexpected_rows[:MAX_ROWS_IN_MESSAGE]:
        lines.append(f"  first rows: {', '.join(shown)}{', ...' if outcome.num_unexpected > len(shown) else ''}")
    return "\n".join([*lines, f"  repair: {outcome.repair}"])


def _at_most(fraction: float) -> str:
    return f"At most {100.0 * fraction:.10g} % of the rows" if fraction else "No row"


def _index_page(report: ValidationReport) -> str:
    failed, warned = len(report.failures("critical")), len(report.failures("warning"))
    verdict = f"The data {'passed' if report.success else 'failed'}: {failed} critical failures, {warned} warnings."
    outcomes = sorted(report.outcomes, key=lambda one: (one.success, one.severity))  # what is to be repaired stands first
    counts = f"{report.num_rows_in:,} rows read, {report.num_rejected:,} rejected, {report.num_rows:,} prepared"
    body = [
        f'<h1>Data validation</h1><p class="{"good" if report.success else "bad"}"><strong>{verdict}</strong></p>',
        f'<p>{counts}. Details: <a href="validation.html">the page of Great Expectations</a>.</p>',
        '<table class="checks"><thead><tr><th>Verdict</th><th>Check</th><th>Found</th></tr></thead><tbody>',
        *map(_index_row, outcomes),
        "</tbody></table>",
    ]
    return PAGE.substitute(title="Data validation", style=STYLE, body="\n".join(body))


def _index_row(outcome: ExpectationOutcome) -> str:
    failed = {"critical": ("bad", "failed"), "warning": ("warn", "warning")}[outcome.severity]
    kind, word = ("good", "passed") if outcome.success else failed
    found = escape(outcome.sentence)
    if outcome.unexpected_rows:
        more = f" and {outcome.num_unexpected - len(outcome.unexpected_rows):,} more"
        shown = ", ".join(f"<code>{escape(row_id)}</code>" for row_id in outcome.unexpected_rows)
        found += f"<br>Rows: {shown}{more if outcome.num_unexpected > len(outcome.unexpected_rows) else ''}"
    if not outcome.success:
        found += f"<br><strong>Repair:</strong> {escape(outcome.repair)}."
    rule = f"<strong>{outcome.name}</strong> <small>{outcome.severity}</small><br>{escape(outcome.rule)}"
    return f'<tr><td class="{kind}">{word}</td><td>{rule}</td><td>{found}</td></tr>'


def _great_expectations_page(report: ValidationReport) -> str:
    """Its own sections in our page: its template loads 18 files from 8 hosts and stamps the time."""
    _great_expectations()
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, DictLoader

    results = [_for_page(result) for result in report.evidence]
    num_failed, num_all = len(report.failures()), len(results)
    statistics: dict[str, float] = {"evaluated_expectations": num_all, "successful_expectations": num_all - num_failed}
    statistics |= {"unsuccessful_expectations": num_failed, "success_percent": 100.0 * (num_all - num_failed) / num_all}
    about = {"batch_spec": {"data_asset_name": "prepared rows"}}
    suite = ExpectationSuiteValidationResult(report.success, results, "prepared_rows", statistics=statistics, meta=about)
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(suite)
    document.sections = document.sections[:-1]  # the last is about the run: its name and its time
    view: Any = DefaultJinjaPageView()
    page = PAGE.substitute(title="Data validation, Great Expectations", style=STYLE, body=SECTIONS)
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": page}), view.env.loader])
    return re.sub(r'<a href="[./]*/expectations/[^"]*"\s*>(.*?)</a>', r"\1", str(view.render(document)))  # a page never written


def _for_page(result: Result) -> Any:
    """The result with its row ids where the page's own table looks for them; its tables escape nothing, so it is done here."""
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    config, found = result["expectation_config"], _escaped(result["result"])
    if found.get("partial_unexpected_list"):
        column = config["kwargs"]["column"]
        pairs = zip(found["partial_unexpected_list"], found["partial_unexpected_index_list"], strict=True)
        found["unexpected_index_column_names"] = ["row"]
        found["unexpected_index_list"] = [{column: value, "row": row_id} for value, row_id in pairs]
        found["element_count"] -= found.get("missing_count", 0)
    kwargs = {key: value for key, value in config["kwargs"].items() if key != "batch_id"}
    expectation = ExpectationConfiguration(config["type"], kwargs, description=escape(config["description"], quote=False))
    return ExpectationValidationResult(result["success"], expectation, found, exception_info=result["exception_info"])


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return escape(value, quote=False) if isinstance(value, str) else value


SECTIONS = """<h1>Data validation by Great Expectations</h1>
<p><a href="index.html">Summary and repairs</a></p>
<nav>{% for section in sections %}<a href="#section-{{ loop.index }}">{{ section["section_name"] }}</a> {% endfor %}</nav>
{% for section in sections %}{% set section_loop = loop %}{% include "section.j2" %}{% endfor %}"""

STYLE = """\
:root { color-scheme: light dark; --ink: #1d2433; --faint: #5c667a; --paper: #fff; --band: #f1f3f7; --line: #d5dae3;
  --good: #17733a; --bad: #b3261e; --warn: #8a5a00; --link: #1b5fc1 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8f0; --faint: #9aa5b8; --paper: #14181f; --band: #1f2530;
  --line: #38404f; --good: #5ecb86; --bad: #ff8a80; --warn: #e6b450; --link: #8ab4f8 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem }
a { color: var(--link) } small { color: var(--faint) } code { font-size: .9em; overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h5 { font-size: 1.1rem } h6, .h6 { font-size: 1rem; font-weight: 600 } h5, h6, p { margin: .3rem 0 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 } [hidden] { display: none }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line) }
th { color: var(--faint); font-weight: 600 } nav a { display: inline-block; margin-right: .8rem }
.table > thead th:first-child { width: 4rem } .table > thead th:last-child { width: 11rem } .checks th:nth-child(2) { width: 38% }
.table-sm { width: auto } .table-sm th, .table-sm td { padding: .2rem .6rem }
.alert { background: var(--band); padding: .5rem .8rem; border-radius: .3rem; margin-top: 1.5rem }
.good, .text-success { color: var(--good) } .bad, .text-danger { color: var(--bad) } .warn, .text-warning { color: var(--warn) }
td.good, td.bad, td.warn { font-weight: 600 } .fas { font-style: normal; font-weight: 700 }
.fa-check-circle::before { content: "\\2713" } .fa-times::before { content: "\\2717" }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
</body>
</html>
""")
