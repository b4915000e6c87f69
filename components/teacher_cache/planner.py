"""What a teacher cache will cost, from a probe of some of its records: its size, its seconds, and from when on it pays.

Arithmetic alone; components/teacher_cache/plan_probe.py and components/training/teacher_rates.py measure.

Shapes: R records of the cache, S of them probed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.teacher_cache.encoding import COLUMNS
from components.teacher_cache.record_index import DTYPES

COLUMN_BYTES = sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())
"""Of one token, beside its entries."""
INDEX_BYTES = sum(np.dtype(dtype).itemsize for dtype in DTYPES.values())
"""Of one record, in the index."""
Numbers = Sequence[float] | npt.NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A total of the whole data; `relative_error` is half of its 95 % interval (two standard errors) as a share of it."""

    value: float
    relative_error: float


@dataclass(frozen=True)
class Seconds:
    """The fastest of some rounds, and how much longer the slowest took, as a share (0.2: 20 %)."""

    best: float
    spread: float
    num_rounds: int

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Seconds":
        return cls(min(rounds), max(rounds) / max(min(rounds), 1e-12) - 1, len(rounds))


@dataclass(frozen=True)
class BatchShape:
    """A batch as the capture plans it: rows padded to `width` tokens, of which it keeps `num_kept`."""

    num_rows: int
    width: int
    num_kept: int

    @property
    def padded_tokens(self) -> int:
        return self.num_rows * self.width


@dataclass(frozen=True)
class TimedBatch:
    """Seconds of the forward pass with its reduction, and of encoding what came out."""

    shape: BatchShape
    forward: Seconds
    encoding: Seconds


@dataclass(frozen=True)
class CacheSize:
    """Bytes of all files. Every part but the entries follows from the rows alone."""

    num_records: int
    num_tokens: int
    num_shards: int
    entry_bytes: Estimate
    file_bytes: int
    """Headers of the shards and of the index, and the manifest."""

    @property
    def total_bytes(self) -> float:
        return self.entry_bytes.value + self.num_tokens * COLUMN_BYTES + self.num_records * INDEX_BYTES + self.file_bytes

    @property
    def bytes_per_token(self) -> float:
        return self.total_bytes / self.num_tokens

    @property
    def relative_error(self) -> float:
        return self.entry_bytes.value * self.entry_bytes.relative_error / self.total_bytes


@dataclass(frozen=True)
class CaptureSeconds:
    """Of one process, from the loaded libraries to the published cache. `overlaps`: encoding has a processor of its own."""

    load: float
    forward: float
    encoding: float
    overlaps: bool
    spread: float

    @property
    def total(self) -> float:
        work = max(self.forward, self.encoding) if self.overlaps else self.forward + self.encoding
        return self.load + work

    @property
    def slowest(self) -> float:
        """At the rates of the slowest rounds."""
        return self.total * (1 + self.spread)


@dataclass(frozen=True)
class GridRuns:
    """Cells of the grid (presets x seeds) by what they need of the teacher, and how long each of them trains."""

    num_distilling: int
    num_scoring: int
    """They do not distil, and read the base's logprobs of the labels out of the cache."""
    num_plain: int
    num_online: int
    """params.yaml gives them a teacher of their own already."""
    num_steps: int
    micro_batches_per_step: int
    num_epochs: float


def spread_places(lengths_R: Numbers, num_wanted: int) -> list[int]:
    """Places of rows at even distances in the order of their lengths, ascending; all of them when there are no more."""
    order_R = np.argsort(np.asarray(lengths_R), kind="stable")
    if len(order_R) <= num_wanted:
        return sorted(order_R.tolist())
    middle_S = ((np.arange(num_wanted) + 0.5) * len(order_R) / num_wanted).astype(int)
    return sorted(order_R[middle_S].tolist())


def estimate_total(values_S: Numbers, sizes_S: Numbers, total_size: float, num_records: int) -> Estimate:
    """Sum of a quantity over all R records, when it goes with their sizes (as guessed from their tokens), whose sum is known.

    Ratio estimator: total_size * sum(values) / sum(sizes); its standard error is that of the residuals values - ratio * sizes
    of a sample without replacement.
    """
    values_S, sizes_S = np.asarray(values_S, dtype=float), np.asarray(sizes_S, dtype=float)
    count = len(values_S)
    if count >= num_records:
        return Estimate(float(values_S.sum()), 0.0)
    ratio = values_S.sum() / sizes_S.sum()
    value = float(ratio * total_size)
    residual_S = values_S - ratio * sizes_S
    variance = residual_S.var(ddof=1) if count > 1 else math.inf
    standard_error = num_records * math.sqrt((1 - count / num_records) * variance / count)
    return Estimate(value, 2 * standard_error / value)


def spread_shapes(shapes: Sequence[BatchShape], num_wanted: int) -> list[int]:
    """Places of planned batches to be timed: of all widths, the narrowest and the widest among them."""
    order = sorted(range(len(shapes)), key=lambda place: (shapes[place].width, shapes[place].num_rows))
    if len(order) <= num_wanted:
        return order
    return [order[round(step * (len(order) - 1) / (num_wanted - 1))] for step in range(num_wanted)]


def capture_seconds(shapes: Sequence[BatchShape], timed: Sequence[TimedBatch], load: float, *, overlaps: bool) -> CaptureSeconds:
    """All planned batches at the rates of the timed ones: the forward pass by padded token, between widths by interpolation
    (attention costs more in longer rows), encoding by kept token."""
    by_width = sorted(timed, key=lambda batch: batch.shape.width)
    widths = [batch.shape.width for batch in by_width]
    rates = [batch.forward.best / batch.shape.padded_tokens for batch in by_width]
    forward = sum(float(np.interp(shape.width, widths, rates)) * shape.padded_tokens for shape in shapes)
    per_kept = sum(batch.encoding.best for batch in timed) / sum(batch.shape.num_kept for batch in timed)
    slowest = sum(batch.forward.best * (1 + batch.forward.spread) for batch in timed)
    spread = slowest / sum(batch.forward.best for batch in timed) - 1
    return CaptureSeconds(load, forward, per_kept * sum(shape.num_kept for shape in shapes), overlaps, spread)


def break_even(capture: float, online: float, cached: float) -> float | None:
    """How many times something must be done with the cache until it has paid for its capture; None: never, it saves nothing."""
    return capture / (online - cached) if online > cached else None


def runs_of_grid(
    num_distilling: int,
    num_scoring: int,
    num_plain: int,
    num_online: int,
    *,
    num_rows: int,
    num_steps: int,
    batch_size: int,
    micro_batch_size: int,
    num_epochs: float | None,
) -> GridRuns:
    """`num_epochs`: passes over the data in place of `num_steps`; None takes the steps as they are."""
    if num_epochs is not None:
        num_steps = math.ceil(num_epochs * num_rows / batch_size)
    passes = num_steps * batch_size / num_rows
    return GridRuns(num_distilling, num_scoring, num_plain, num_online, num_steps, batch_size // micro_batch_size, passes)


def grid_seconds(runs: GridRuns, plain: float, distilling: float, online: float) -> float:
    """Steps of all cells; each figure is the seconds of one micro-batch of such a cell."""
    per_micro_batch = (runs.num_plain + runs.num_scoring) * plain + runs.num_distilling * distilling + runs.num_online * online
    return runs.num_steps * runs.micro_batches_per_step * per_micro_batch
