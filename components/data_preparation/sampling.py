"""Which rows of each source are drawn: `max_examples` and `weight` of data.sources.

What is said of a folder or a hub set holds for its files together: they are one group, with one limit and one weight.
A row is drawn by the salted hash of its content, smallest first. So a sample keeps its rows when other rows are added, as far
as these do not come before them, and a higher limit only adds rows.

Rounding: the group that is scarcest for its weight is drawn whole; every other group gives
floor(weight / weight of the scarcest * rows of the scarcest) rows, in exact arithmetic of the weights as written.
Of rejected rows the same share is drawn as of good ones, rounded to the nearest row, half upwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from components.data_preparation.salted_hash import Hashes, salted_hash
from components.errors import DataError

Mask = npt.NDArray[np.bool_]
_SALT = b"sampling"


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source file. Weight and limit are those of its group, the same in each of the group's files."""

    name: str
    group: str
    content_hash: Hashes
    """uint64 per row. A rejected row may have any number; rows with the same one are drawn in the order they stand."""
    is_rejected: Mask
    weight: float | None = None
    max_examples: int | None = None


@dataclass(frozen=True)
class _Group:
    weight: Fraction | None
    num_good: int
    num_available: int
    """What max_examples leaves of the good rows."""


def draw_rows(sources: Sequence[SourceRows]) -> list[Mask]:
    """Per source, True for the rows that are drawn. Nothing is drawn twice."""
    groups = _groups(sources)
    num_drawn = _num_drawn(groups)
    drawn: list[Mask] = [np.zeros(len(source.content_hash), dtype=np.bool_) for source in sources]
    for name, numbers in _members(sources).items():
        whole = _draw_group([sources[index] for index in numbers], num_drawn[name], groups[name].num_good)
        for index, part in zip(numbers, _divide(whole, [sources[index] for index in numbers]), strict=True):
            drawn[index] = part
    return drawn


def draw_table(sources: Sequence[SourceRows], drawn: Sequence[Mask]) -> str:
    """What was drawn, a line per source, for the log."""
    head = ("source", "weight", "max_examples", "rows", "drawn", "rejected", "rejected drawn")
    lines = [head, *(_table_line(source, mask) for source, mask in zip(sources, drawn, strict=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_align(line, widths) for line in lines)


def _groups(sources: Sequence[SourceRows]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for name, numbers in _members(sources).items():
        members = [sources[number] for number in numbers]
        assert len({(source.weight, source.max_examples) for source in members}) == 1, f"{name}: one weight, one limit"
        weight, limit = members[0].weight, members[0].max_examples
        num_good = sum(int(np.count_nonzero(~source.is_rejected)) for source in members)
        # The decimal that was written, not the binary number next to it: 0.3 is three times 0.1.
        exact = None if weight is None else Fraction(repr(float(weight)))
        groups[name] = _Group(exact, num_good, num_good if limit is None else min(limit, num_good))
    return groups


def _members(sources: Sequence[SourceRows]) -> dict[str, list[int]]:
    """Numbers of the sources of each group, in the order of the groups' first ones."""
    members: dict[str, list[int]] = {}
    for number, source in enumerate(sources):
        members.setdefault(source.group, []).append(number)
    return members


def _num_drawn(groups: Mapping[str, _Group]) -> dict[str, int]:
    """Good rows that each group gives."""
    per_weight = {name: group.num_available / group.weight for name, group in groups.items() if group.weight is not None}
    if not per_weight:
        return {name: group.num_available for name, group in groups.items()}
    scarcest = min(per_weight, key=lambda name: per_weight[name])
    rows = per_weight[scarcest]
    if rows == 0:
        raise DataError(
            f"data.sources: {scarcest} has a weight, but no row that can be drawn ({groups[scarcest].num_good} good rows): "
            "nothing can be mixed in that ratio. Give it usable rows, or take its weight away"
        )
    counts = {name: group.num_available if group.weight is None else int(rows * group.weight) for name, group in groups.items()}
    for name, count in counts.items():
        if groups[name].weight is not None and count == 0:
            raise DataError(
                f"data.sources: {name} gets no row at weight {float(groups[name].weight or 0):g}: "
                f"{scarcest} has {groups[scarcest].num_available} rows to draw at weight "
                f"{float(groups[scarcest].weight or 0):g}, and each row of the mixture is drawn once. "
                f"Give {name} a weight of at least {float(1 / rows):.3g}, or {scarcest} more rows"
            )
    return counts


def _draw_group(members: Sequence[SourceRows], num_drawn: int, num_good: int) -> Mask:
    """Of the good rows `num_drawn`, of the rejected ones the same share, so that max_rejected_fraction keeps its meaning."""
    order = np.argsort(salted_hash(np.concatenate([source.content_hash for source in members]), _SALT), kind="stable")
    is_rejected = np.concatenate([source.is_rejected for source in members])
    good, rejected = order[~is_rejected[order]], order[is_rejected[order]]
    drawn = np.zeros(len(order), dtype=np.bool_)
    drawn[good[:num_drawn]] = True
    num_rejected = (2 * num_drawn * len(rejected) + num_good) // (2 * num_good) if num_good else len(rejected)
    drawn[rejected[:num_rejected]] = True
    return drawn


def _divide(whole: Mask, members: Sequence[SourceRows]) -> list[Mask]:
    ends = np.cumsum([len(source.content_hash) for source in members])
    return [np.asarray(part) for part in np.split(whole, ends[:-1])]


def _table_line(source: SourceRows, drawn: Mask) -> tuple[str, ...]:
    limits = (
        "" if source.weight is None else f"{source.weight:g}",
        "" if source.max_examples is None else f"{source.max_examples:,}",
    )
    counts = (~source.is_rejected, drawn & ~source.is_rejected, source.is_rejected, drawn & source.is_rejected)
    return (source.name, *limits, *(f"{np.count_nonzero(mask):,}" for mask in counts))


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
    return "  ".join(cells)
