"""Decoded records that were read lately: small data are read again every epoch, and a look-up is ten times as fast as decoding.

Bounded by bytes, so memory does not grow with the cache.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BUDGET_BYTES = 32 * 2**20
ARRAY_BYTES = 150
"""What numpy and Python need for an array beside its numbers: of small records it is most."""


@dataclass(frozen=True)
class DecodedRecord:
    """A record as it was read and checked: its columns [N], the ids and logprobs of its entries one after the other [M]."""

    columns: dict[str, npt.NDArray[Any]]
    entry_ids_M: npt.NDArray[np.int32]
    entry_logprobs_M: npt.NDArray[np.float32]

    @property
    def num_tokens(self) -> int:
        return len(self.columns["num_entries"])

    @property
    def num_bytes(self) -> int:
        arrays = (*self.columns.values(), self.entry_ids_M, self.entry_logprobs_M)
        return sum(array.nbytes + ARRAY_BYTES for array in arrays)


class RecentRecords:
    """The last records within a budget of bytes, each process its own."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self._budget_bytes = BUDGET_BYTES if budget_bytes is None else budget_bytes
        self._records: OrderedDict[str, DecodedRecord] = OrderedDict()
        self.num_bytes = 0

    def get(self, name: str) -> DecodedRecord | None:
        record = self._records.get(name)
        if record is not None:
            self._records.move_to_end(name)
        return record

    def keep(self, name: str, record: DecodedRecord) -> None:
        if (old := self._records.pop(name, None)) is not None:
            self.num_bytes -= old.num_bytes
        self._records[name] = record
        self.num_bytes += record.num_bytes
        while self.num_bytes > self._budget_bytes:
            self.num_bytes -= self._records.popitem(last=False)[1].num_bytes
