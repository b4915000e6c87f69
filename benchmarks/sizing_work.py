"""Hours, traffic, disk and money of a whole pipeline run, from counted work and stated rates.

Seconds are work divided by rates that nobody has measured here: no GPU has run Ballast. Hence two sets of rates, GOAL and
CONSERVATIVE; the truth is hoped to lie between them.
"""

import math
from dataclasses import dataclass, replace

from benchmarks.sizing_memory import Setup
from benchmarks.sizing_models import Architecture, forward_flops, teacher_flops, training_flops
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.planner import CacheSize, Estimate, break_even, grid_seconds, runs_of_grid

MEAN_ENTRIES = (13.0, 33.0)
"""Entries a token keeps at tail_mass .03: 52 B (TinyStories, sure), 103 B (GSM8K, unsure) at V 512 in docs/teacher-cache.md."""
PROBABILITY_BITS = 12


@dataclass(frozen=True)
class Rates:
    """What the hours are divided by. `traffic` is the bandwidth of a collective among GPUs, `remote` that of the DVC remote."""

    name: str
    mfu: float
    peak_flops: float = 989e12
    gpu_memory_bandwidth: float = 3.35e12
    memory_share: float = 0.5
    traffic: float = 300e9
    overlaps_traffic: bool = True
    remote: float = 1e9
    distilling_over_plain: float = 1.016
    token_launch_seconds: float = 0.015
    stage_seconds: float = 30.0


GOAL = Rates("goal", mfu=0.40)
CONSERVATIVE = Rates(
    "conservative",
    mfu=0.20,
    memory_share=0.2,
    traffic=20e9,
    overlaps_traffic=False,
    remote=0.1e9,
    distilling_over_plain=1.188,
    token_launch_seconds=0.040,
    stage_seconds=90.0,
)


@dataclass(frozen=True)
class Data:
    """`row_tokens`: mean of a row with its template; `predicted_share`: of tokens that an objective works on."""

    name: str
    num_rows: int
    row_tokens: float
    target_share: float

    @property
    def num_tokens(self) -> float:
        return self.num_rows * self.row_tokens


DATA = {
    "alpaca": Data("Alpaca, 52,002 rows", 52_002, 108.0, 0.55),
    "sharegpt": Data("ShareGPT-like, 100 M tokens", 257_000, 389.0, 0.83),
}


@dataclass(frozen=True)
class Grid:
    """Cells of the default params.yaml: 5 presets of which 3 distil, 3 seeds."""

    num_distilling: int = 3
    num_plain: int = 2
    num_seeds: int = 3
    num_epochs: float = 3.0
    step_tokens: int = 65_536

    @property
    def num_cells(self) -> int:
        return (self.num_distilling + self.num_plain) * self.num_seeds


@dataclass(frozen=True)
class Evaluation:
    """Of one model: rows scored by likelihood, and answers generated in batches, each token one pass over the fp32 weights."""

    scored_tokens: float = 2e6
    num_answers: int = 500
    answer_tokens: int = 64
    batch_size: int = 16


def cache_size(model: Architecture, data: Data, mean_entries: float, *, keeps_prompt: bool = True) -> CacheSize:
    """The planner's size, its entries by an assumed mean in place of a probe. Files' headers are left out (under 1 %)."""
    num_tokens = round(data.num_tokens * (1.0 if keeps_prompt else data.target_share))
    entries = EntryLayout.of(model.vocabulary, PROBABILITY_BITS).num_bytes(round(num_tokens * mean_entries))
    return CacheSize(data.num_rows, num_tokens, 1, Estimate(float(entries), 0.0), 0)


def capture_seconds(model: Architecture, data: Data, rates: Rates, num_gpus: int) -> float:
    """One forward pass of all rows, every position kept (positions: all), spread over the GPUs; precision: bf16."""
    flops = data.num_tokens * teacher_flops(model, data.row_tokens, 1.0)
    return flops / (rates.peak_flops * rates.mfu * num_gpus) + rates.stage_seconds


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that each GPU sends in a step, and the seconds that takes at the rate assumed."""

    num_bytes: float
    seconds: float


def step_traffic(setup: Setup, rates: Rates) -> StepTraffic:
    """Ring collectives send (n - 1) / n of what they handle, an all-reduce twice (ZeRO, Rajbhandari et al. 2020, section 7).

    DDP: the fp32 gradients, once a step. FSDP2: all weights gathered for the forward and again for the backward pass of every
    micro-batch, fp32 gradients scattered once a step. ZeRO-3: the same, gradients in bf16 in every micro-batch.
    """
    ring = (setup.num_gpus - 1) / setup.num_gpus
    gathered = 2 * setup.gathered_bytes * setup.model.parameters * setup.micro_batches
    by_engine = {
        "single": 0.0,
        "ddp": 2 * 4 * setup.trained,
        "fsdp2": gathered + 4 * setup.trained,
        "fsdp2_bf16": gathered + 4 * setup.trained,
        "zero3": gathered + 2 * setup.trained * setup.micro_batches,
    }
    num_bytes = ring * by_engine[setup.engine]
    return StepTraffic(num_bytes, num_bytes / rates.traffic)


def step_seconds(setup: Setup, row_tokens: float, rates: Rates) -> tuple[float, float]:
    """Of a step, with its teacher where that is online: seconds, and those of the traffic as a share of them.

    The optimiser's own pass over memory (under .1 s for 8 B on one GPU) and the data loader are left out.
    """
    tokens = setup.micro_tokens * setup.micro_batches
    flops = tokens * training_flops(setup.model, row_tokens, setup.predicted_share, is_lora=setup.is_lora, rank=setup.rank)
    flops += tokens * forward_flops(setup.model, row_tokens) if setup.is_checkpointed else 0.0
    flops += tokens * teacher_flops(setup.model, row_tokens, setup.predicted_share) if setup.has_online_teacher else 0.0
    compute, traffic = flops / (rates.peak_flops * rates.mfu), step_traffic(setup, rates).seconds
    total = max(compute, traffic) if rates.overlaps_traffic else compute + traffic
    return total, traffic / total


def cell_seconds(setup: Setup, data: Data, grid: Grid, rates: Rates) -> float:
    """A distilling cell on its GPUs from first to last step, by the planner's arithmetic of the grid."""
    plain, _ = step_seconds(setup, data.row_tokens, rates)
    rows_per_step = max(1, round(grid.step_tokens / data.row_tokens))
    runs = runs_of_grid(
        1,
        0,
        0,
        0,
        num_rows=data.num_rows,
        num_steps=0,
        batch_size=rows_per_step,
        micro_batch_size=rows_per_step,  # `plain` are the seconds of a whole step
        num_epochs=grid.num_epochs,
    )
    return grid_seconds(runs, plain, plain * rates.distilling_over_plain, 0.0) + rates.stage_seconds


def evaluation_seconds(model: Architecture, evaluation: Evaluation, rates: Rates) -> float:
    """One model on one GPU, the base's laws beside it (drift): twice the forward pass of what is scored; then the answers."""
    scoring = 2 * evaluation.scored_tokens * teacher_flops(model, 256, 0.5) / (rates.peak_flops * rates.mfu)
    per_token = max(4 * model.parameters / (rates.gpu_memory_bandwidth * rates.memory_share), rates.token_launch_seconds)
    passes = math.ceil(evaluation.num_answers / evaluation.batch_size) * evaluation.answer_tokens
    return scoring + passes * per_token + rates.stage_seconds


def break_even_epochs(setup: Setup, data: Data, grid: Grid, rates: Rates) -> float | None:
    """Epochs x distilling cells after which the cache has paid for its capture, in GPU time; None: never."""
    capture = capture_seconds(setup.model, data, rates, 1)
    steps = data.num_tokens / grid.step_tokens
    plain, _ = step_seconds(setup, data.row_tokens, rates)
    online, _ = step_seconds(replace(setup, has_online_teacher=True), data.row_tokens, rates)
    cached = plain * min(rates.distilling_over_plain, GOAL.distilling_over_plain)
    return break_even(capture, steps * setup.num_gpus * online, steps * setup.num_gpus * cached)


@dataclass(frozen=True)
class Disk:
    """Bytes: what the artifacts and DVC's store hold at the end, what checkpoints take meanwhile, what a remote receives."""

    kept: float
    checkpoints: float
    pushed: float


def disk_bytes(setup: Setup, grid: Grid, cache_bytes: float, cells_at_once: int) -> Disk:
    """Base 2 bytes a weight as published; each cell's model 4 (Ballast saves fp32, LoRA merged); a checkpoint holds the trained
    weights and two moments, 12, and while a third is written two are kept. DVC copies outputs into its store unless
    `cache.type` links them: everything once more."""
    model = setup.model
    outputs = grid.num_cells * 4 * model.parameters + cache_bytes
    checkpoints = cells_at_once * 3 * 12 * setup.trained
    return Disk(2 * (outputs + 2 * model.parameters), checkpoints, outputs)
