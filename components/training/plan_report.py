"""A cache plan as people read it: three tables in Markdown, every number with its unit."""

from collections.abc import Sequence

from components.teacher_cache.disk_space import MARGIN
from components.teacher_cache.planner import Seconds, break_even, grid_seconds
from components.training.cache_plan import CachePlan, ChoicePlan
from components.training.teacher_rates import StepRates


def render_plan(plan: CachePlan) -> str:
    """The whole page."""
    parts = [
        "# The teacher cache, planned",
        f"From {plan.num_probed_records:,} of {plan.size.num_records:,} records ({plan.num_probed_tokens:,} tokens), on "
        f"{plan.device}. Seconds are the fastest of their rounds; the spread, and the capture's second figure, tell the slowest.",
        "## 1. The cache with the current params",
        _table(("", ""), _cache_lines(plan)),
        "## 2. Entries of a token",
        _table(CHOICE_HEAD, [_choice_line(choice) for choice in plan.choices]),
        "Gradient error: ||g − g_full|| / ||g_full|| of dKL/dlogits for a student near the teacher (its logits + noise 0.1), "
        f"on {plan.num_error_tokens:,} tokens. Tail: entries until at most that probability is left outside. KL at equality: of "
        "the stored law to the teacher itself, which is rounding alone.",
        "## 3. From when on the cache pays",
        _table(("", ""), _pass_lines(plan)),
        _table(STEP_HEAD, [_step_line("full student", plan.rates.full, plan), _step_line("LoRA student", plan.rates.lora, plan)]),
        _memory_line(plan),
    ]
    return "\n\n".join(parts) + "\n"


CHOICE_HEAD = ("entries", "mean entries", "coverage", "bytes/token", "whole cache", "gradient error", "KL at equality")
STEP_HEAD = (
    "micro-batch, forward and backward",
    "no teacher",
    "cached",
    "online",
    "cached / online",
    "spread",
    "grid with cache",
    "grid with online teacher",
    "pays from",
)


def _cache_lines(plan: CachePlan) -> list[tuple[str, str]]:
    size, seconds = plan.size, plan.capture
    fits = plan.free_bytes >= MARGIN * size.total_bytes
    shards = f"{size.num_shards:,} shard{'s' if size.num_shards > 1 else ''}"
    room = "it fits" if fits else f"IT DOES NOT FIT ({MARGIN:g} x its size is wanted)"
    lines = [
        ("records", f"{size.num_records:,} (of {plan.num_rows:,} rows; equal rows share one)"),
        ("tokens kept", f"{size.num_tokens:,}"),
        ("bytes per token", f"{size.bytes_per_token:.1f} B ± {100 * size.relative_error:.1f} %"),
        ("total size", f"{in_bytes(size.total_bytes)} in {shards}, index and manifest included"),
        (
            "capture",
            f"{in_time(seconds.total)} to {in_time(seconds.slowest)} in one process; more processes share the shards",
        ),
        ("made up of", _capture_parts(plan)),
        ("padded tokens", f"{plan.padded_tokens:,} in the batches that will run; {_bucket_rates(plan)}"),
        ("free disk", f"{in_bytes(plan.free_bytes)}: {room}"),
    ]
    if plan.existing is not None:
        there = plan.existing
        found = f"{in_bytes(there.num_bytes)}, {there.num_tokens:,} tokens, {there.bytes_per_token:.1f} B each"
        lines.append(("there already", f"a cache for exactly these data, base and settings: {found}. Nothing would be captured"))
    elif plan.held_tokens:
        held = f"the last cache holds {plan.held_tokens:,} of these tokens under the same laws"
        lines.append(("there already", f"{held}, which are not captured again where half of a shard is still wanted"))
    return lines


def _capture_parts(plan: CachePlan) -> str:
    seconds = plan.capture
    together = "at the same time" if seconds.overlaps else "one after the other"
    return (
        f"loading {in_time(seconds.load)}, then forward {in_time(seconds.forward)} and encoding {in_time(seconds.encoding)} "
        f"{together}; libraries start before"
    )


def _bucket_rates(plan: CachePlan) -> str:
    rates = {batch.shape.width: batch.shape.padded_tokens / batch.forward.best for batch in plan.timed}
    return ", ".join(f"{rates[width]:,.0f} tokens/s at width {width}" for width in sorted(rates))


def _choice_line(plan: ChoicePlan) -> tuple[str, ...]:
    choice = plan.choice
    name = f"K = {choice.max_entries}" if choice.tail_mass == 0 else f"tail {choice.tail_mass:g}, at most {choice.max_entries}"
    return (
        f"**{name}** (configured)" if plan.is_configured else name,
        f"{plan.mean_entries:.1f}",
        f"{100 * plan.coverage:.2f} %",
        f"{plan.size.bytes_per_token:.1f} B",
        in_bytes(plan.size.total_bytes),
        f"{100 * plan.error.gradient:.2f} %",
        f"{plan.error.kl_nats:.1e} nats",
    )


def _pass_lines(plan: CachePlan) -> list[tuple[str, str]]:
    """One pass over the rows: teacher online or read; and what the grid needs."""
    rates, runs = plan.rates, plan.runs
    online, read = (part.best * plan.micro_batches_per_epoch for part in (rates.forward, rates.read))
    passes = break_even(plan.capture.total, online, read)
    planned = runs.num_distilling * runs.num_epochs
    cells = f"{runs.num_distilling} cells of the grid (presets x seeds) distil from the cache, {runs.num_epochs:.1f} passes each"
    lines = [
        ("an online teacher's forward, per epoch", f"{in_time(online)} (spread {_percent(rates.forward.spread)})"),
        ("reading the cache, per epoch", f"{in_time(read)} (spread {_percent(rates.read.spread)})"),
        ("capture, once", in_time(plan.capture.total)),
        (
            "the capture is paid for after",
            f"{'no number of' if passes is None else f'{passes:.1f}'} epochs x runs; {_verdict(passes, planned)}",
        ),
        ("planned", f"{cells}: {planned:,.1f} epochs x runs; {runs.num_steps:,} steps a cell"),
    ]
    if runs.num_scoring:
        lines.append(("cannot do without", f"{runs.num_scoring} cells read the base's logprobs of the labels out of the cache"))
    return lines


def _verdict(passes: float | None, planned: float) -> str:
    if not planned:
        return "no cell distils from it, so it pays nothing"
    if passes is None or planned < passes:
        return "the planned grid is too small for it"
    return f"the planned grid needs it {planned / passes:.1f} times over"


def _step_line(name: str, rates: StepRates, plan: CachePlan) -> tuple[str, ...]:
    """Hours of the whole grid, and from how many distilling runs on the cache pays, at these steps."""
    steps, runs = (rates.plain, rates.cached, rates.online), plan.runs
    spread = max((step.spread for step in steps if step is not None), default=0.0)
    ratio = rates.cached_per_online
    cells = [name, *(_step(step) for step in steps), "" if ratio is None else f"{ratio:.2f}", _percent(spread)]
    if rates.plain is None or rates.cached is None:
        return (*cells, "", "", "")
    with_cache = plan.capture.total + grid_seconds(runs, rates.plain.best, rates.cached.best, rates.cached.best)
    if rates.online is None:
        return (*cells, in_time(with_cache), "not possible", "the first run")
    online = grid_seconds(runs, rates.plain.best, rates.online.best, rates.online.best)
    num_micro_batches = runs.num_steps * runs.micro_batches_per_step
    needed = break_even(plan.capture.total, rates.online.best * num_micro_batches, rates.cached.best * num_micro_batches)
    return (*cells, in_time(with_cache), in_time(online), "never" if needed is None else f"{needed:.1f} runs")


def _step(step: Seconds | None) -> str:
    return "not possible" if step is None else in_time(step.best)


def _memory_line(plan: CachePlan) -> str:
    steps = (*vars(plan.rates.full).values(), *vars(plan.rates.lora).values())
    missing = " Not possible: it did not fit the memory, or the model's head is no plain projection." if None in steps else ""
    return (
        f"An online teacher beside a full student is a second model: {in_bytes(plan.rates.teacher_bytes)} of memory. A LoRA "
        "student with its adapters off is its own teacher: the same forward, 0 MB more. Grid times are forward and "
        "backward alone: no optimiser, no looks, no evaluations."
    ) + missing


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def in_bytes(num_bytes: float) -> str:
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:,.2f} GB"
    return f"{num_bytes / 1e6:,.2f} MB"


def in_time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of one width, so that it reads in a terminal too."""
    rows = [list(head), *(list(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"| {line} |" for line in [text[0], " | ".join("-" * width for width in widths), *text[1:]])
