"""How long the used rows are: exact figures and histograms of each split, for the data card.

R rows; what is kept of a row is three numbers of 4 bytes and two marks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from components.data.tokenized import SPLITS
from components.data_preparation.drawn_rows import DrawnRows
from components.data_preparation.findings import Findings
from components.data_preparation.frames import targets_of_rows

Numbers = npt.NDArray[np.int32]
MAX_BINS = 24
HIGH = 0.95
_COLUMNS = ["tokenised.input_ids", "tokenised.is_target", "tokenised.num_turns_cut", "inspected.num_turns"]


@dataclass(frozen=True)
class RowSizes:
    """All [R]. `turns` are those of the text, also where truncation has cut some off (`is_cut`)."""

    tokens: Numbers
    target_tokens: Numbers
    turns: Numbers
    is_cut: npt.NDArray[np.bool_]


def measure_rows(rows: DrawnRows) -> RowSizes:
    tokens, targets, turns = (np.zeros(len(rows), dtype=np.int32) for _ in range(3))
    is_cut = np.zeros(len(rows), dtype=bool)
    for start, _, table in rows.tables(_COLUMNS):
        block = slice(start, start + table.num_rows)
        input_ids, is_target, num_turns_cut, num_turns = table.columns
        tokens[block] = pc.list_value_length(input_ids).fill_null(0).to_numpy()
        targets[block] = targets_of_rows(is_target)
        turns[block] = num_turns.fill_null(0).to_numpy()
        is_cut[block] = num_turns_cut.fill_null(0).to_numpy() > 0
    return RowSizes(tokens, targets, turns, is_cut)


def lengths(sizes: RowSizes, found: Findings) -> dict[str, dict[str, Any]]:
    """Figures of each split's used rows; None where it has none."""
    quantities = {"tokens": sizes.tokens, "target_tokens": sizes.target_tokens, "turns": sizes.turns}
    return {
        name: {split: _figures(numbers[_is_used(found, code)]) for code, split in enumerate(SPLITS)}
        for name, numbers in quantities.items()
    }


def rows_cut(sizes: RowSizes, found: Findings) -> dict[str, int]:
    return {split: int((sizes.is_cut & _is_used(found, code)).sum()) for code, split in enumerate(SPLITS)}


def histograms(sizes: RowSizes, found: Findings) -> dict[str, dict[str, Any]]:
    """Rows per bin of tokens and of target tokens, the same bins for all splits: from `edges[i]` to below `edges[i + 1]`."""
    return {
        name: _histogram({split: numbers[_is_used(found, code)] for code, split in enumerate(SPLITS)})
        for name, numbers in (("tokens", sizes.tokens), ("target_tokens", sizes.target_tokens))
    }


def _is_used(found: Findings, code: int) -> npt.NDArray[np.bool_]:
    return np.asarray(found.is_used & (found.split == code), dtype=bool)


def _figures(numbers: Numbers) -> dict[str, Any] | None:
    """The median and the 95 % are values that occur: at least so many rows are as long or shorter."""
    if not len(numbers):
        return None
    median, high = np.quantile(numbers, [0.5, HIGH], method="inverted_cdf")
    total = int(numbers.sum(dtype=np.int64))
    return {
        "min": int(numbers.min()),
        "mean": round(total / len(numbers), 2),
        "median": int(median),
        "percentile_95": int(high),
        "max": int(numbers.max()),
        "total": total,
    }


def _histogram(of_splits: dict[str, Numbers]) -> dict[str, Any]:
    longest = max((int(numbers.max()) for numbers in of_splits.values() if len(numbers)), default=0)
    width = bin_width(longest)
    num_bins = longest // width + 1
    counts = {split: np.bincount(numbers // width, minlength=num_bins).tolist() for split, numbers in of_splits.items()}
    return {"edges": [width * place for place in range(num_bins + 1)], **counts}


def bin_width(longest: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 … with which MAX_BINS bins reach beyond the longest row."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if MAX_BINS * step * scale > longest:
                return step * scale
        scale *= 10
