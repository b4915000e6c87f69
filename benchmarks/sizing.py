"""What a pipeline run of a model needs: memory per GPU, cache, hours, traffic, disk and money, before anything is rented.

    python -m benchmarks.sizing                                   # the tables of docs/sizing.md
    python -m benchmarks.sizing --model llama-3.1-8b --gpus 8 --gpu-gigabytes 80 --data alpaca --epochs 2
    python -m benchmarks.sizing --own H,F,L,heads,key_heads,head_width,V,tied --gpus 4

Formulas with their sources: sizing_models, sizing_memory, sizing_work; how near they come to real tensors: sizing_checks. Nothing
here was measured on a GPU. Hours and money are ranges: at the rates GOAL and CONSERVATIVE of sizing_work.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import get_args

from benchmarks.sizing_layout import GB, Machine, choose_layout, possible_setups, run_disk, run_hours
from benchmarks.sizing_memory import FRAGMENTED, RESERVED_BYTES, Engine, GpuMemory, Setup, gpu_memory, plain_head_bytes
from benchmarks.sizing_models import MODELS, Architecture
from benchmarks.sizing_work import (
    CONSERVATIVE,
    DATA,
    GOAL,
    MEAN_ENTRIES,
    Data,
    Evaluation,
    Grid,
    break_even_epochs,
    cache_size,
    step_traffic,
)

GPU_COUNTS = (1, 8, 64)
EXAMPLE = "e.g. 2048,8192,16,32,8,64,128256,yes"
COLUMNS = (
    "model | training | GPUs | a cell's GPUs, engine | micro-batch | GB a GPU | capture, h | training, h | evaluation, h "
    "| push, h | traffic a step | disk, GB | all, h | cost"
)


def figure(value: float) -> str:
    """Two significant digits, three from 100 on; money and gigabytes want no more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def span(low: float, high: float) -> str:
    """`low to high`, or one figure where they read the same."""
    first, last = figure(low), figure(high)
    return first if first == last else f"{first} to {last}"


def table(models: Sequence[Architecture], options: argparse.Namespace, data: Data, grid: Grid) -> list[str]:
    """Low figures at the goal's rates, high ones at the conservative rates."""
    lines = heading(COLUMNS)
    for model in models:
        for is_lora in (False, True):
            base = replace(setup_of(model, options, is_lora), predicted_share=data.target_share)
            for count in options.gpus:
                machine = Machine(count, options.gpu_gigabytes * GB, options.price)
                lines.append(line_of(base, machine, data, grid, options.engines))
    return lines


def heading(columns: str) -> list[str]:
    return [f"| {columns} |", "|" + "---|" * len(columns.split(" | "))]


def line_of(base: Setup, machine: Machine, data: Data, grid: Grid, engines: Sequence[Engine]) -> str:
    head = f"| {base.model.name} | {'LoRA' if base.is_lora else 'full'} | {machine.num_gpus}"
    layout = choose_layout(base, machine, data, grid, engines)
    if layout is None:
        needs = min(gpu_memory(setup).total for setup in possible_setups(base, machine, data, grid, engines)) / GB
        return f"{head} | does not fit: {needs:.0f} GB a GPU at least |" + " |" * (len(COLUMNS.split(" | ")) - 4)
    setup, disk = layout.setup, run_disk(layout, data, grid)
    best, worst = (run_hours(layout, machine, data, grid, rates, Evaluation()) for rates in (GOAL, CONSERVATIVE))
    sent = step_traffic(setup, GOAL).num_bytes / GB
    names = ("capture", "training", "evaluation", "transfer")
    cells = [
        f"{setup.num_gpus} {setup.engine}, {layout.cells_at_once} at once",
        f"{setup.micro_tokens} x {setup.micro_batches}",
        figure(layout.memory.total / GB),
        *(span(getattr(best, name), getattr(worst, name)) for name in names),
        f"{figure(sent)} GB, {best.traffic_share:.0%} to {worst.traffic_share:.0%}" if sent else "none",
        figure((disk.kept + disk.checkpoints) / GB),
        span(best.total, worst.total),
        span(*(hours.total * machine.num_gpus * machine.price_per_gpu_hour for hours in (best, worst))),
    ]
    return " | ".join([head, *cells]) + " |"


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
    lines = heading("model | data | bytes a token | cache, GB | of targets alone, GB | epochs x cells until it pays")
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
    """Every number that is neither counted nor measured on this page."""
    asked, low, high = Evaluation(), GOAL, CONSERVATIVE
    cells = f"{grid.num_cells} cells, {grid.num_distilling * grid.num_seeds} of them distil"
    rows = {
        "share of the peak that a step reaches (MFU; 6N and attention)": f"{low.mfu} · {high.mfu}",
        "peak, bf16 dense (H100, H200: the vendor's figure)": f"{low.peak_flops / 1e12:.0f} TFLOP/s",
        "bandwidth of a collective among GPUs": f"{low.traffic / GB:.0f} · {high.traffic / GB:.0f} GB/s",
        "traffic beside the computation": "wholly hidden · not at all",
        "memory bandwidth": f"{low.gpu_memory_bandwidth / 1e12} TB/s",
        "share of it that generation reaches": f"{low.memory_share} · {high.memory_share}",
        "a generated token, at least": f"{1e3 * low.token_launch_seconds:.0f} · {1e3 * high.token_launch_seconds:.0f} ms",
        "step that distils from the cache / plain (measured, CPU)": f"{low.distilling_over_plain} · {high.distilling_over_plain}",
        "to the DVC remote": f"{low.remote / GB:g} · {high.remote / GB:g} GB/s",
        "start of a stage": f"{low.stage_seconds:.0f} · {high.stage_seconds:.0f} s",
        "entries a token keeps (measured, a tiny model)": f"{MEAN_ENTRIES[0]:.0f} · {MEAN_ENTRIES[1]:.0f}",
        "data": f"{data.name}: {data.row_tokens:.0f} tokens a row, {data.target_share:.0%} of them targets",
        "grid": f"{cells}; {grid.num_epochs:g} epochs, {grid.step_tokens:,} tokens a step",
        "scored of a model": f"{asked.scored_tokens / 1e6:g} M tokens, and as many by the base beside it",
        "generated by a model": f"{asked.num_answers} answers of {asked.answer_tokens} tokens, {asked.batch_size} at once",
        "longest row that attends to itself": f"{options.row_tokens} tokens",
        "memory lost to context, and to fragmentation": f"{RESERVED_BYTES / GB} GB, and {FRAGMENTED:.0%}",
        "a GPU": f"{options.gpu_gigabytes:g} GB, {options.price:g} an hour (an example, no quote)",
    }
    return [*heading("assumption | goal · conservative"), *(f"| {what} | {value} |" for what, value in rows.items())]


def own_model(words: str) -> Architecture:
    """H,F,L,heads,key_heads,head_width,V,tied: seven whole numbers and yes or no."""
    *numbers, tied = words.split(",")
    if len(numbers) != 7 or not all(number.isdigit() for number in numbers) or tied not in ("yes", "no"):
        raise argparse.ArgumentTypeError(
            f"{words!r} is not H,F,L,heads,key_heads,head_width,V,yes|no: 2048,8192,16,32,8,64,32000,yes"
        )
    hidden, mlp, layers, heads, key_heads, width, vocabulary = map(int, numbers)
    return Architecture("own model", hidden, mlp, layers, heads, key_heads, width, vocabulary, is_tied=tied == "yes")


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
    parser.add_argument("--row-tokens", type=int, default=1024, help="longest row (eager and packed: the micro-batch)")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    engines = get_args(Engine)
    parser.add_argument("--engines", nargs="*", choices=engines, default=engines[:3], help="to choose from")
    parser.add_argument("--online", action="store_true", help="an online teacher in place of the cache")
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
        table(models, options, data, grid),
        parts_lines(models, data, options),
        cache_lines(models, list(dict.fromkeys([data, *DATA.values()])), grid),
        assumptions(options, data, grid),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def main() -> None:
    print(page(parse()))


if __name__ == "__main__":
    main()
