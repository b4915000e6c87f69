"""A training row made by hand, for whoever comes without our data stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.artifacts import fingerprint_row
from components.objectives.labels import IGNORED_LABEL


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one row and which of them are targets: what cache and collator ask of a row."""

    input_ids: list[int]
    is_target: list[bool]

    @property
    def fingerprint(self) -> str:
        return fingerprint_row(self.input_ids, self.is_target)


def row_of(example: Mapping[str, Any]) -> TokenRow:
    """From an example as Hugging Face trainers know them: `input_ids`, and `labels` with -100 where there is no target."""
    return TokenRow(list(example["input_ids"]), [label != IGNORED_LABEL for label in example["labels"]])
