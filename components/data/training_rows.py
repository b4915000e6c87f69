"""What the stages ask of a training row, whoever made it; components.data.tokenized.TokenizedRow answers all of it."""

from typing import Protocol


class TargetRow(Protocol):
    """Token ids of a row and which of them are targets."""

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def is_target(self) -> list[bool]: ...


class TrainingRow(TargetRow, Protocol):
    """A row with an address: what is known of it beforehand (teacher's laws, token scores) is found by its fingerprint."""

    @property
    def fingerprint(self) -> str: ...


def count_targets(row: TargetRow) -> int:
    """Targets that something predicts: a row's first token is never one."""
    return sum(row.is_target[1:])
