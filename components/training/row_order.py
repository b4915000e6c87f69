"""Which rows each step takes, decided by the seed alone."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import Sampler

from components.uncertainty.selection import keyed_generator

Row = TypeVar("Row")


class RowOrder(Sampler[int]):
    """Row numbers of a whole run: shuffled passes over the data, one after the other, for steps of always the same size.

    Micro-batches, ranks and a resumed run meet the same rows in the same steps. The Trainer's own order ends each pass with a
    smaller step, which several ranks would fill up by repeating rows.
    """

    def __init__(self, num_rows: int, num_drawn: int, seed: int) -> None:
        self._num_rows = num_rows
        self._num_drawn = num_drawn
        self._seed = seed

    def __len__(self) -> int:
        return self._num_drawn

    def __iter__(self) -> Iterator[int]:
        for number, start in enumerate(range(0, self._num_drawn, self._num_rows)):
            order = torch.randperm(self._num_rows, generator=keyed_generator(self._seed, number))
            yield from order[: self._num_drawn - start].tolist()


def spread_rows(rows: Sequence[Row], num_wanted: int) -> list[Row]:
    """Up to `num_wanted` rows from all over the data."""
    return [rows[index] for index in range(0, len(rows), max(1, -(-len(rows) // num_wanted)))]
