"""What a check is: one rule on one column of a flat frame, how many rows may break it, and what a person does then.

Nothing here knows Great Expectations: `expectations` turns a check into an expectation, and a suite of them into a report.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pandas import DataFrame

Severity = Literal["critical", "warning", "info"]
"""A failed `critical` check fails the data, a failed `warning` is reported, a failed `info` says what was asked for."""

Counts = dict[str, Any]
"""Numbers that add up from block to block, in nested dictionaries."""


@dataclass(frozen=True)
class Between:
    """Every value lies in [smallest, largest]; None: no bound. Slow: Great Expectations compares value by value, in Python."""

    smallest: int | None
    largest: int | None


@dataclass(frozen=True)
class Empty:
    """Every value is missing: the column says what was found, row by row."""


@dataclass(frozen=True)
class OneOf:
    """Every value that is there is one of these."""

    values: tuple[str | bool | int, ...]


@dataclass(frozen=True)
class NoneOf:
    """No value is one of these."""

    values: tuple[str, ...]


Expected = Between | Empty | OneOf | NoneOf


@dataclass(frozen=True)
class Check:
    """One expectation: `column` is as `expected` in all rows but a fraction `allowed` of them.

    `of` says whose column it is: the rows', or the totals', a frame of one row with what was counted over all blocks.
    `fault` goes on from "3 of 50 rows" (totals: from "0 rows"); `repair` says what to do in params.yaml or in the data.
    """

    name: str
    severity: Severity
    column: str
    expected: Expected
    rule: str
    fault: str
    repair: str
    allowed: float = 0.0
    of: Literal["rows", "totals"] = "rows"

    def allows(self, num_unexpected: int, num_judged: int) -> bool:
        """May so many rows break the rule? Exact: 0.3 of 10 rows are 3 rows, whatever floating point says."""
        return num_unexpected <= Fraction(str(self.allowed)) * num_judged


@dataclass(frozen=True)
class Suite:
    """The checks of one kind of frame, which has the columns `complete` (no value missing) and `partial`.

    `columns` gives the frame that the checks see, `count` the block's part of the counts, and `totals` the one row of figures
    that the checks of totals see, from the counts of all blocks.
    """

    name: Literal["raw_rows", "prepared_rows"]
    title: str
    checks: tuple[Check, ...]
    complete: tuple[str, ...]
    partial: tuple[str, ...]
    columns: "Callable[[DataFrame], DataFrame]"
    count: "Callable[[DataFrame], Counts]"
    totals: Callable[[Counts], Mapping[str, int]]

    def of(self, of: Literal["rows", "totals"]) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.of == of)


@dataclass(frozen=True)
class ExpectationOutcome:
    """`sentence` is what was found, for a person; `unexpected_rows` are the ids of the first 20."""

    name: str
    column: str
    severity: Severity
    success: bool
    num_unexpected: int
    num_judged: int
    unexpected_percent: float
    unexpected_rows: tuple[str, ...]
    rule: str
    sentence: str
    repair: str


def at_most(fraction: float) -> str:
    return f"At most {100.0 * fraction:.10g} % of the rows" if fraction else "No row"


def add_counts(one: Counts, other: Counts) -> Counts:
    """The counts of two blocks together; a key that only one of them has counts as it is."""
    return one | {key: _add(one.get(key), value) for key, value in other.items()}


def _add(one: Any, other: Any) -> Any:
    if one is None:
        return other
    return add_counts(one, other) if isinstance(one, dict) else one + other
