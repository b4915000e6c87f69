"""What a pipeline run of a model needs: memory per GPU, cache, hours, traffic, disk and money, before anything is rented.

    python -m benchmarks.sizing                                   # the tables of docs/sizing.md
    python -m benchmarks.sizing --model llama-3.1-8b --gpus 8 --gpu-gigabytes 80 --data alpaca --epochs 2
    python -m benchmarks.sizing --own H,F,L,heads,key_heads,head_width,V,tied --gpus 4

Formulas with their sources: sizing_models, sizing_memory, sizing_work; how near they come to real tensors: sizing_checks. Nothing
here was measured on a GPU. Hours and money are ranges: at the rates GOAL and CONSERVATIVE of sizing_work.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import get_args

from benchmarks.sizing_memory import FRAGMENTED, RESERVED_BYTES, Engine, GpuMemory, Setup, gpu_memory, plain_head_bytes
from benchmarks.sizing_models import MODELS, Architecture
from benchmarks.sizing_work import (
    CONSERVATIVE,
    DATA,
    GOAL,
    MEAN_ENTRIES,
    Data,
    Disk,
    Evaluation,
    Grid,
    Rates,
    break_even_epochs,
    cache_size,
    capture_seconds,
    cell_seconds,
    disk_bytes,
    evaluation_seconds,
    step_seconds,
    step_traffic,
)

MICRO_TOKENS = (8192, 4096, 2048, 1024)
GPU_COUNTS = (1, 8, 64)
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
    """What trains the whole grid in the least time at the conservative rates; of equals that with the fewest GPUs a cell.

    Cells need no traffic among each other, so a cell gets more GPUs than hold it only where there are more GPUs than cells.
    None where nothing fits.
    """
    found = [setup for setup in _setups(base, machine, data, grid, engines) if fits(gpu_memory(setup), machine)]
    if not found:
        return None

    def seconds(setup: Setup) -> float:
        rounds = -(-grid.num_cells // (machine.num_gpus // setup.num_gpus))
        return rounds * step_seconds(setup, data.row_tokens, CONSERVATIVE)[0]

    setup = min(found, key=lambda setup: (round(seconds(setup), 6), setup.num_gpus))
    return Layout(setup, gpu_memory(setup), min(grid.num_cells, machine.num_gpus // setup.num_gpus))


def _setups(base: Setup, machine: Machine, data: Data, grid: Grid, engines: Sequence[Engine]) -> Iterator[Setup]:
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
        rounds * cell_seconds(setup, data, grid, rates, distils=True) / 3600,
        evaluated * evaluation_seconds(setup.model, evaluation, rates) / 3600,
        disk.pushed / rates.remote / 3600,
        step_seconds(setup, data.row_tokens, rates)[1],
    )


def run_disk(layout: Layout, data: Data, grid: Grid) -> Disk:
    cache_bytes = cache_size(layout.setup.model, data, max(MEAN_ENTRIES)).total_bytes
    return disk_bytes(layout.setup, grid, cache_bytes, layout.cells_at_once)


def figure(value: float) -> str:
    """Two significant digits, three from 100 on; money and gigabytes want no more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def span(low: float, high: float) -> str:
    """`low to high`, or one figure where they read the same."""
    first, last = figure(low), figure(high)
    return first if first == last else f"{first} to {last}"


HEADER = (
    "| model | training | GPUs | a cell's GPUs, engine | micro-batch | GB a GPU | capture, h | training, h | evaluation, h | push, h "
    "| traffic a step | disk, GB | all, h | cost |"
)


def line_of(base: Setup, machine: Machine, data: Data, grid: Grid, evaluation: Evaluation, engines: Sequence[Engine]) -> str:
    """One line of the table: low figures at the goal's rates, high ones at the conservative rates."""
    head = f"| {base.model.name} | {'LoRA' if base.is_lora else 'full'} | {machine.num_gpus}"
    layout = choose_layout(base, machine, data, grid, engines)
    if layout is None:
        needs = gpu_memory(replace(base, micro_tokens=MICRO_TOKENS[-1], predicted_share=data.target_share)).total / GB
        return f"{head} | does not fit: one GPU alone would need {needs:.0f} GB |" + " |" * 10
    setup = layout.setup
    best, worst = (run_hours(layout, machine, data, grid, rates, evaluation) for rates in (GOAL, CONSERVATIVE))
    sent = step_traffic(setup, GOAL).num_bytes / GB
    traffic = f"{figure(sent)} GB, {best.traffic_share:.0%} to {worst.traffic_share:.0%}" if sent else "none"
    costs = [hours.total * machine.num_gpus * machine.price_per_gpu_hour for hours in (best, worst)]
    parts = (
        span(getattr(best, name), getattr(worst, name)) for name in ("capture", "training", "evaluation", "transfer", "total")
    )
    capture, training, evaluating, push, total = parts
    disk = run_disk(layout, data, grid)
    return (
        f"{head} | {setup.num_gpus} {setup.engine}, {layout.cells_at_once} at once | {setup.micro_tokens} x {setup.micro_batches} "
        f"| {layout.memory.total / GB:.0f} | {capture} | {training} | {evaluating} | {push} | {traffic} "
        f"| {figure((disk.kept + disk.checkpoints) / GB)} | {total} "
        f"| {span(*costs)} |"
    )


def table(
    models: Sequence[Architecture], counts: Sequence[int], options: argparse.Namespace, data: Data, grid: Grid
) -> list[str]:
    lines = [HEADER, "|" + "---|" * HEADER.count(" | ") + "---|"]
    for model in models:
        for is_lora in (False, True):
            for count in counts:
                machine = Machine(count, options.gpu_gigabytes * GB, options.price)
                lines.append(line_of(setup_of(model, options, is_lora), machine, data, grid, Evaluation(), options.engines))
    return lines


def setup_of(model: Architecture, options: argparse.Namespace, is_lora: bool) -> Setup:
    return Setup(
        replace(model, attention="fused") if options.fused_attention else model,
        is_lora=is_lora,
        rank=options.rank,
        attended_tokens=options.row_tokens,
        is_checkpointed=options.checkpointing,
        has_online_teacher=options.online,
    )


def cache_lines(models: Sequence[Architecture], data: Sequence[Data], grid: Grid) -> list[str]:
    lines = [
        "| model | data | bytes a token | cache, GB | of targets alone | epochs x cells until it pays |",
        "|---|---|---|---|---|---|",
    ]
    for model in models:
        for rows in data:
            sizes = [cache_size(model, rows, entries) for entries in MEAN_ENTRIES]
            targets = [cache_size(model, rows, entries, keeps_prompt=False).total_bytes / GB for entries in MEAN_ENTRIES]
            setup = Setup(model, micro_batches=8, predicted_share=rows.target_share)
            pays = break_even_epochs(setup, rows, grid, GOAL)
            lines.append(
                f"| {model.name} | {rows.name} | {span(*(size.bytes_per_token for size in sizes))} "
                f"| {span(*(size.total_bytes / GB for size in sizes))} | {span(*targets)} "
                f"| {'never' if pays is None else f'{pays:.1f}'} |"
            )
    return lines


def parts_lines(models: Sequence[Architecture], data: Data, options: argparse.Namespace) -> list[str]:
    """One GPU, 8,192 tokens: every part in GB, and what three other choices would add or save."""
    names = [part.name for part in fields(GpuMemory)]
    lines = [f"| model | training | {' | '.join(names)} | total | plain loss | online teacher | checkpointed |"]
    lines.append("|" + "---|" * (len(names) + 6))
    for model in models:
        for is_lora in (False, True):
            setup = replace(setup_of(model, options, is_lora), predicted_share=data.target_share)
            memory = gpu_memory(setup)
            online = gpu_memory(replace(setup, has_online_teacher=True)).total - memory.total
            saved = memory.total - gpu_memory(replace(setup, is_checkpointed=True)).total
            cells = [f"{getattr(memory, name) / GB:.1f}" for name in names] + [f"{memory.total / GB:.1f}"]
            cells += [f"+{(plain_head_bytes(setup) - memory.head) / GB:.0f}", f"+{online / GB:.1f}", f"−{saved / GB:.0f}"]
            lines.append(f"| {model.name} | {'LoRA' if is_lora else 'full'} | {' | '.join(cells)} |")
    return lines


def assumptions(options: argparse.Namespace, data: Data, grid: Grid) -> list[str]:
    """Every number that is neither counted nor measured here."""
    evaluation = Evaluation()
    rows = [
        ("floating-point operations a second, of the peak (MFU, 6N and attention)", f"{GOAL.mfu} · {CONSERVATIVE.mfu}"),
        ("peak of a GPU, bf16 dense (H100, H200: the vendor's figure)", f"{GOAL.peak_flops / 1e12:.0f} TFLOP/s"),
        ("bandwidth of a collective among GPUs", f"{GOAL.traffic / GB:.0f} · {CONSERVATIVE.traffic / GB:.0f} GB/s"),
        ("traffic beside the computation", "wholly hidden · not at all"),
        (
            "memory bandwidth, and the share of it in generation",
            f"{GOAL.gpu_memory_bandwidth / 1e12} TB/s, {GOAL.memory_share} · {CONSERVATIVE.memory_share}",
        ),
        (
            "a generated token costs at least",
            f"{GOAL.token_launch_seconds * 1000:.0f} · {CONSERVATIVE.token_launch_seconds * 1000:.0f} ms a batch",
        ),
        (
            "step that distils from the cache / plain (measured on a CPU)",
            f"{GOAL.distilling_over_plain} · {CONSERVATIVE.distilling_over_plain}",
        ),
        ("to the DVC remote", f"{GOAL.remote / GB:g} · {CONSERVATIVE.remote / GB:g} GB/s"),
        ("start of a stage", f"{GOAL.stage_seconds:.0f} · {CONSERVATIVE.stage_seconds:.0f} s"),
        ("entries a token keeps (measured with a tiny model)", f"{MEAN_ENTRIES[0]:.0f} · {MEAN_ENTRIES[1]:.0f}"),
        ("data", f"{data.name}: {data.row_tokens:.0f} tokens a row, {data.target_share:.0%} of them targets"),
        (
            "grid",
            f"{grid.num_cells} cells ({grid.num_distilling * grid.num_seeds} distil), {grid.num_epochs:g} epochs, {grid.step_tokens:,} tokens a step",
        ),
        (
            "evaluation of a model",
            f"{evaluation.scored_tokens / 1e6:g} M tokens scored, {evaluation.num_answers} answers of {evaluation.answer_tokens} tokens",
        ),
        ("longest row that attends to itself", f"{options.row_tokens} tokens"),
        ("memory lost to context, and to fragmentation", f"{RESERVED_BYTES / GB} GB, {FRAGMENTED:.0%}"),
        ("a GPU", f"{options.gpu_gigabytes:g} GB, {options.price:g} an hour (an example, no quote)"),
    ]
    return ["| assumption | goal · conservative |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]


def own_model(words: str) -> Architecture:
    """H,F,L,heads,key_heads,head_width,V,tied: seven whole numbers and yes or no."""
    *numbers, tied = words.split(",")
    if len(numbers) != 7 or tied not in ("yes", "no"):
        raise argparse.ArgumentTypeError(
            f"{words!r} is not H,F,L,heads,key_heads,head_width,V,yes|no, e.g. 2048,8192,16,32,8,64,128256,yes"
        )
    return Architecture("own model", *map(int, numbers), is_tied=tied == "yes")  # type: ignore[arg-type]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), help="one of these alone")
    parser.add_argument("--own", type=own_model, help="H,F,L,heads,key_heads,head_width,V,yes|no (tied): a LLaMA of yours")
    parser.add_argument("--gpus", type=int, nargs="*", default=list(GPU_COUNTS))
    parser.add_argument("--gpu-gigabytes", type=float, default=80.0, help="80 (H100), 141 (H200)")
    parser.add_argument("--price", type=float, default=3.0, help="of one GPU for an hour")
    parser.add_argument("--data", choices=sorted(DATA), default="sharegpt")
    parser.add_argument("--rows", type=int, help="rows of your own data in place of those of --data")
    parser.add_argument("--mean-tokens", type=float, help="tokens of a row of your own data")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--row-tokens", type=int, default=1024, help="longest row; all of a packed micro-batch under eager attention"
    )
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument(
        "--engines", nargs="*", choices=get_args(Engine), default=["single", "ddp", "fsdp2"], help="to choose from"
    )
    parser.add_argument("--online", action="store_true", help="memory with an online teacher in place of the cache")
    parser.add_argument("--fused-attention", action="store_true", help="Gemma 2 without eager attention")
    parser.add_argument("--checkpointing", action="store_true", help="activations recomputed: Ballast has no switch for it today")
    return parser.parse_args(words)


def page(options: argparse.Namespace) -> str:
    """All tables as Markdown."""
    models = [options.own] if options.own else [MODELS[options.model]] if options.model else list(MODELS.values())
    known = DATA[options.data]
    data = replace(known, num_rows=options.rows or known.num_rows, row_tokens=options.mean_tokens or known.row_tokens)
    grid = Grid(num_seeds=options.seeds, num_epochs=options.epochs)
    parts = [
        table(models, options.gpus, options, data, grid),
        parts_lines(models, data, options),
        cache_lines(models, list(dict.fromkeys([data, *DATA.values()])), grid),
        assumptions(options, data, grid),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def main() -> None:
    print(page(parse()))


if __name__ == "__main__":
    main()
