"""How the grid of a pipeline run lies on rented GPUs, and what the run then takes: hours and disk.

Cells need no traffic among each other, so GPUs serve different cells first, and one cell together only where it must or where
there are more GPUs than cells.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.sizing_memory import Engine, GpuMemory, Setup, gpu_memory
from benchmarks.sizing_work import (
    CONSERVATIVE,
    MEAN_ENTRIES,
    Data,
    Disk,
    Evaluation,
    Grid,
    Rates,
    cache_size,
    capture_seconds,
    cell_seconds,
    disk_bytes,
    evaluation_seconds,
    step_seconds,
)

MICRO_TOKENS = (8192, 4096, 2048, 1024)
ALMOST_AS_FAST = 1.1
"""Up to this factor of the shortest time fewer GPUs a cell are preferred: less can go wrong, and no latency is modelled here."""
GB = 1e9


@dataclass(frozen=True)
class Machine:
    """What is rented. The price is an example, no quote."""

    num_gpus: int
    gpu_bytes: float = 80 * GB
    price_per_gpu_hour: float = 3.0


@dataclass(frozen=True)
class Layout:
    """How the grid lies on the GPUs: `cells_at_once` cells, each as in `setup`."""

    setup: Setup
    memory: GpuMemory
    cells_at_once: int


@dataclass(frozen=True)
class Hours:
    """Wall time of the whole run at one set of rates."""

    capture: float
    training: float
    evaluation: float
    transfer: float
    traffic_share: float

    @property
    def total(self) -> float:
        return self.capture + self.training + self.evaluation + self.transfer


def fits(memory: GpuMemory, machine: Machine) -> bool:
    return memory.total <= machine.gpu_bytes


def choose_layout(
    base: Setup, machine: Machine, data: Data, grid: Grid, engines: Sequence[Engine] = ("single", "ddp", "fsdp2")
) -> Layout | None:
    """What trains the whole grid in about the least time at the conservative rates, with the fewest GPUs a cell; None where
    nothing fits."""
    found = [setup for setup in possible_setups(base, machine, data, grid, engines) if fits(gpu_memory(setup), machine)]
    if not found:
        return None

    def seconds(setup: Setup) -> float:
        rounds = -(-grid.num_cells // (machine.num_gpus // setup.num_gpus))
        return rounds * step_seconds(setup, data.row_tokens, CONSERVATIVE)[0]

    limit = ALMOST_AS_FAST * min(map(seconds, found))
    setup = min((setup for setup in found if seconds(setup) <= limit), key=lambda setup: (setup.num_gpus, seconds(setup)))
    return Layout(setup, gpu_memory(setup), min(grid.num_cells, machine.num_gpus // setup.num_gpus))


def possible_setups(base: Setup, machine: Machine, data: Data, grid: Grid, engines: Sequence[Engine]) -> Iterator[Setup]:
    """Every power of two of GPUs with every engine and micro-batch that makes up a step of `grid.step_tokens`."""
    counts = [2**power for power in range(machine.num_gpus.bit_length())]
    for num_gpus, engine, micro_tokens in itertools.product(counts, engines, MICRO_TOKENS):
        micro_batches, rest = divmod(grid.step_tokens, micro_tokens * num_gpus)
        if (engine == "single") == (num_gpus == 1) and micro_batches and not rest:
            parts = {"num_gpus": num_gpus, "micro_tokens": micro_tokens, "micro_batches": micro_batches}
            yield replace(base, engine=engine, predicted_share=data.target_share, **parts)


def run_hours(layout: Layout, machine: Machine, data: Data, grid: Grid, rates: Rates, evaluation: Evaluation) -> Hours:
    """Capture on all GPUs, then the cells in rounds, then one evaluation per GPU at a time (the base is one more)."""
    setup = layout.setup
    rounds = -(-grid.num_cells // layout.cells_at_once)
    evaluated = -(-(grid.num_cells + 1) // machine.num_gpus)
    disk = run_disk(layout, data, grid)
    return Hours(
        capture_seconds(setup.model, data, rates, machine.num_gpus) / 3600,
        rounds * cell_seconds(setup, data, grid, rates) / 3600,
        evaluated * evaluation_seconds(setup.model, evaluation, rates) / 3600,
        disk.pushed / rates.remote / 3600,
        step_seconds(setup, data.row_tokens, rates)[1],
    )


def run_disk(layout: Layout, data: Data, grid: Grid) -> Disk:
    cache_bytes = cache_size(layout.setup.model, data, max(MEAN_ENTRIES)).total_bytes
    return disk_bytes(layout.setup, grid, cache_bytes, layout.cells_at_once)
