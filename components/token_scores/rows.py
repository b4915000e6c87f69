"""The rows that are scored: each distinct one once, addressed by its fingerprint."""

from collections.abc import Iterable, Sequence
from typing import Protocol


class ScoredRow(Protocol):
    """What a training row must offer; components.data.tokenized.TokenizedRow does."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def input_ids(self) -> list[int]: ...
    @property
    def is_target(self) -> list[bool]: ...


def count_targets(row: ScoredRow) -> int:
    """Targets that something predicts: a row's first token is never one."""
    return sum(row.is_target[1:])


def distinct_rows(rows: Iterable[ScoredRow]) -> list[ScoredRow]:
    """The first of each fingerprint, in order. The same text with other targets is another row."""
    found: dict[str, ScoredRow] = {}
    for row in rows:
        found.setdefault(row.fingerprint, row)
    return list(found.values())


def record_starts(rows: Sequence[ScoredRow]) -> list[int]:
    """Where each row's targets begin in a column over all rows, and at the end how many there are: R + 1 numbers."""
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + count_targets(row))
    return starts
