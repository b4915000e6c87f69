"""What the contract found: both suites, the counts, and the error that stops the pipeline.

`to_json` is what validation.json holds and the data card reads: plain values that follow from the rows and the limits alone, no
time, no path, no value of a secret.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from components.data.faults import POLICY_KINDS
from components.data_contract.check import Counts, ExpectationOutcome, Severity
from components.errors import DataError

MAX_ROWS_IN_MESSAGE = 5


@dataclass(frozen=True)
class SuiteReport:
    """`evidence` is merged from Great Expectations' own results, for its page; it is not part of the JSON."""

    name: str
    title: str
    num_rows: int
    outcomes: tuple[ExpectationOutcome, ...]
    counts: Counts
    evidence: tuple[dict[str, Any], ...] = field(repr=False, compare=False)

    @property
    def success(self) -> bool:
        return not self.failures("critical")

    def failures(self, *severities: Severity) -> tuple[ExpectationOutcome, ...]:
        """What failed, of these severities or of all."""
        return tuple(one for one in self.outcomes if not one.success and (not severities or one.severity in severities))

    def to_json(self) -> dict[str, Any]:
        expectations = [asdict(one) | {"unexpected_rows": list(one.unexpected_rows)} for one in self.outcomes]
        return {"success": self.success, "num_rows": self.num_rows, "expectations": expectations}


@dataclass(frozen=True)
class ContractReport:
    """Both suites: over the rows in, and over the rows of tokens, which are the rows used."""

    raw: SuiteReport
    prepared: SuiteReport
    num_rows_not_drawn: int = 0
    """Rows read that `max_examples` and the weights of the sources left out."""

    def __post_init__(self) -> None:
        used, prepared = self.raw.counts["rows_used"], self.prepared.num_rows
        assert used == prepared, f"a row was lost: {used} rows are used, {prepared} are prepared"

    @property
    def suites(self) -> tuple[SuiteReport, SuiteReport]:
        return self.raw, self.prepared

    @property
    def success(self) -> bool:
        return self.raw.success and self.prepared.success

    def failures(self, *severities: Severity) -> tuple[ExpectationOutcome, ...]:
        return self.raw.failures(*severities) + self.prepared.failures(*severities)

    @property
    def counts(self) -> Counts:
        """rows read = rows in + rows not drawn; rows in = rows used + rows quarantined."""
        raw = self.raw.counts
        assert raw["rows_in"] == raw["rows_used"] + raw["rows_quarantined"]
        read = {"rows_read": raw["rows_in"] + self.num_rows_not_drawn, "rows_not_drawn": self.num_rows_not_drawn}
        return read | raw | {"prepared": self.prepared.counts}

    def to_json(self) -> dict[str, Any]:
        """For write_json."""
        suites = {suite.name: suite.to_json() for suite in self.suites}
        return {"success": self.success, "counts": self.counts, "suites": suites}

    def raise_if_failed(self) -> None:
        failures = self.failures("critical")
        if failures:
            num_all = sum(len(suite.outcomes) for suite in self.suites)
            head = f"The data failed {len(failures)} of {num_all} checks, so nothing may be trained on it."
            raise DataError("\n".join([head, *map(self._explain, failures)]))

    def _explain(self, outcome: ExpectationOutcome) -> str:
        lines = [f"* {outcome.name}: {outcome.sentence} {outcome.rule}"]
        if kinds := self._kinds(outcome):
            lines.append(f"  by kind: {', '.join(f'{count:,} {kind}' for kind, count in kinds)}")
        if shown := outcome.unexpected_rows[:MAX_ROWS_IN_MESSAGE]:
            lines.append(f"  first rows: {', '.join(shown)}{', ...' if outcome.num_unexpected > len(shown) else ''}")
        return "\n".join([*lines, f"  repair: {outcome.repair}"])

    def _kinds(self, outcome: ExpectationOutcome) -> list[tuple[str, int]]:
        """What kinds of rows a check on all that is rejected, or on all that is quarantined, speaks of."""
        kinds = most_first(self.raw.counts["quarantined_by_kind"])
        about = {"a_row_is_used": kinds, "few_rows_rejected": [one for one in kinds if one[0] not in POLICY_KINDS]}
        return about.get(outcome.name, [])


def most_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))
