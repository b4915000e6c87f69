"""The rows that are scored: each distinct one once, addressed by its fingerprint."""

from collections.abc import Iterable, Sequence

from components.data.training_rows import TrainingRow, count_targets


def distinct_rows(rows: Iterable[TrainingRow]) -> list[TrainingRow]:
    """The first of each fingerprint, in order. The same text with other targets is another row."""
    found: dict[str, TrainingRow] = {}
    for row in rows:
        found.setdefault(row.fingerprint, row)
    return list(found.values())


def record_starts(rows: Sequence[TrainingRow]) -> list[int]:
    """Where each row's targets begin in a column over all rows, and at the end how many there are: R + 1 numbers."""
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + count_targets(row))
    return starts
