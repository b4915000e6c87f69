"""Runs a suite over a frame in blocks: the only module, with data_docs, that imports great_expectations.

An expectation is evaluated by Great Expectations block by block, so memory does not grow with the rows. Blocks are merged by
adding what was judged and what was unexpected, and the verdict is taken on the sums (`Check.allows`): one block and many give
equal reports. Figures over all rows (is a split empty?) are expectations too, on a frame of one row.

A failed `critical` check fails the data. An expectation that crashes says nothing about the data: that is an error of ours,
never a failure of the rows. The import (5 to 9 seconds) stands inside functions, with analytics and progress bars off and an
ephemeral context, which writes no file.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.data_contract.check import Between, Check, Counts, Empty, ExpectationOutcome, NoneOf, OneOf, Suite, add_counts
from components.data_contract.contract_report import SuiteReport
from components.errors import BallastError

if TYPE_CHECKING:
    from pandas import DataFrame

Result = dict[str, Any]
"""What Great Expectations says of one expectation, as plain JSON."""

MAX_NAMED_ROWS = 20
BLOCK_ROWS = 100_000
"""A block costs a quarter of a second however small it is, and some 40 MB at this size."""


class CrashedExpectationError(BallastError):
    """An expectation could not be evaluated: nothing is known about the data."""


@dataclass(frozen=True)
class Evidence:
    """What the blocks say of one check together; `rows` and `values` are the first 20 unexpected ones."""

    num_rows: int = 0
    num_missing: int = 0
    num_unexpected: int = 0
    rows: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def num_judged(self) -> int:
        return self.num_rows - self.num_missing

    def __add__(self, other: "Evidence") -> "Evidence":
        return Evidence(
            self.num_rows + other.num_rows,
            self.num_missing + other.num_missing,
            self.num_unexpected + other.num_unexpected,
            (self.rows + other.rows)[:MAX_NAMED_ROWS],
            (self.values + other.values)[:MAX_NAMED_ROWS],
        )


def validate(frames: "Iterable[DataFrame]", suite: Suite, block_rows: int = BLOCK_ROWS) -> SuiteReport:
    """Run every check of a suite over a frame that comes in parts, in the order of its rows; small parts are joined first."""
    validator = _Validator(suite)
    found = {check.name: Evidence() for check in suite.checks}
    counts: Counts = suite.count(_no_rows(suite))
    num_rows = 0
    for block in _blocks(frames, suite, block_rows):
        num_rows += len(block)
        counts = add_counts(counts, suite.count(block))
        for name, evidence in validator.of_rows(block).items():
            found[name] += evidence
    totals = suite.totals(counts)
    found |= validator.of_totals(totals)
    outcomes = tuple(_outcome(check, found[check.name], totals) for check in suite.checks)
    return SuiteReport(suite.name, suite.title, num_rows, outcomes, counts, tuple(validator.page(suite, found, outcomes)))


def _blocks(frames: "Iterable[DataFrame]", suite: Suite, block_rows: int) -> "Iterator[DataFrame]":
    """Frames of at least `block_rows` rows (the last may have fewer), none without rows."""
    import pandas

    parts: list[DataFrame] = []
    for frame in frames:
        _require_complete(frame, suite)
        parts += [frame] if len(frame) else []
        if sum(map(len, parts)) >= block_rows:
            yield pandas.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
            parts = []
    if parts:
        yield pandas.concat(parts, ignore_index=True)


def _no_rows(suite: Suite) -> "DataFrame":
    import pandas

    return pandas.DataFrame({column: pandas.Series([], dtype=object) for column in suite.complete + suite.partial})


def _require_complete(block: "DataFrame", suite: Suite) -> None:
    lacking = set(suite.complete + suite.partial) - set(block.columns)
    assert not lacking, f"the frame of {suite.name} lacks {sorted(lacking)}"
    for column in suite.complete:  # an expectation passes over what is missing
        assert not block[column].isna().any(), f"{column} is missing in a row of the frame of {suite.name}"


class _Validator:
    """An ephemeral context of Great Expectations with the two suites of expectations: on rows, and on totals."""

    def __init__(self, suite: Suite) -> None:
        self._gx = great_expectations()
        self._suite = suite
        context = self._gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_pandas("prepared")
        self._batch = source.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")

    def of_rows(self, block: "DataFrame") -> dict[str, Evidence]:
        """Row ids are the index: as `unexpected_index_column_names` they would cost 30 microseconds per unexpected row."""
        frame = self._suite.columns(block).set_axis(block["row_id"].to_numpy(dtype=object))  # an index without a name
        return self._run(self._suite.of("rows"), frame)

    def of_totals(self, totals: Mapping[str, int]) -> dict[str, Evidence]:
        import pandas

        return self._run(self._suite.of("totals"), pandas.DataFrame([totals], index=["all rows"]))

    def _run(self, checks: Sequence[Check], frame: "DataFrame") -> dict[str, Evidence]:
        expectations = [self._expectation(check) for check in checks]
        suite = self._gx.ExpectationSuite(self._suite.name, expectations=expectations)
        summary = {"result_format": "SUMMARY", "partial_unexpected_count": MAX_NAMED_ROWS, "return_unexpected_index_query": False}
        validated = self._batch.get_batch({"dataframe": frame}).validate(suite, result_format=summary)
        results: list[Result] = [one.to_json_dict() for one in validated.results]
        for result in results:
            _raise_if_crashed(result, self._gx.__version__)
        return {result["expectation_config"]["meta"]["check"]: _evidence(result["result"]) for result in results}

    def _expectation(self, check: Check) -> Any:
        about: dict[str, Any] = {
            "severity": check.severity,
            "description": f"{check.rule} [{check.severity}]",
            "meta": {"check": check.name},
        }
        about |= {"column": check.column, "mostly": round(1.0 - check.allowed, 12)}  # 1 - .7 is .30000000000000004
        match check.expected:
            case Between(smallest, largest):
                return self._gx.expectations.ExpectColumnValuesToBeBetween(min_value=smallest, max_value=largest, **about)
            case Empty():
                return self._gx.expectations.ExpectColumnValuesToBeNull(**about)
            case OneOf(values):
                return self._gx.expectations.ExpectColumnValuesToBeInSet(value_set=list(values), **about)
            case NoneOf(values):
                return self._gx.expectations.ExpectColumnValuesToNotBeInSet(value_set=[str(one) for one in values], **about)

    def page(self, suite: Suite, found: Mapping[str, Evidence], outcomes: Sequence[ExpectationOutcome]) -> Iterable[Result]:
        """Merged results in the shape of Great Expectations' own, for its page."""
        for check, outcome in zip(suite.checks, outcomes, strict=True):
            config = self._expectation(check).configuration.to_json_dict()
            yield {"success": outcome.success, "expectation_config": config, "result": _merged_result(found[check.name])}


def great_expectations() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    import great_expectations
    import great_expectations.expectations

    return great_expectations


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


def _evidence(result: Result) -> Evidence:
    rows = tuple(str(row_id) for row_id in result["partial_unexpected_index_list"])
    numbers = (result["element_count"], result.get("missing_count", 0), result["unexpected_count"])
    return Evidence(*numbers, rows, tuple(result["partial_unexpected_list"]))


def _merged_result(evidence: Evidence) -> Result:
    percent = 100.0 * evidence.num_unexpected / evidence.num_judged if evidence.num_judged else 0.0
    return {
        "element_count": evidence.num_judged,
        "unexpected_count": evidence.num_unexpected,
        "unexpected_percent": percent,
        "partial_unexpected_list": list(evidence.values),
        "partial_unexpected_index_list": list(evidence.rows),
    }


def _outcome(check: Check, evidence: Evidence, totals: Mapping[str, int]) -> ExpectationOutcome:
    unexpected, judged = evidence.num_unexpected, evidence.num_judged
    percent = 100.0 * unexpected / judged if judged else 0.0
    of_rows = check.of == "rows"
    figure = f"{unexpected:,} of {judged:,} rows ({percent:.2f} %)" if of_rows else f"{totals[check.column]:,} rows"
    about = (check.name, check.column, check.severity, check.allows(unexpected, judged), unexpected, judged, percent)
    rows = evidence.rows if of_rows else ()
    return ExpectationOutcome(*about, rows, check.rule, f"{figure} {check.fault}.", check.repair)
