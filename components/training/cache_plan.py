"""A cache plan as a whole: the probe, and what it says of the capture, of other numbers of entries and of the grid."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from components.data.training_rows import TrainingRow
from components.errors import ArtifactError, DataError
from components.objectives.objective import Objective
from components.params import CachePlanParams, TrainingParams
from components.teacher_cache.capture import LawCapture, LawSettings
from components.teacher_cache.disk_space import free_bytes
from components.teacher_cache.entry_guess import count_contexts
from components.teacher_cache.format import CacheIdentity, CacheManifest, read_manifest
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.law_errors import EntryChoice, LawError, law_errors, probed_logits
from components.teacher_cache.plan_probe import (
    ProbedRecords,
    configured_choice,
    entry_choices,
    file_bytes,
    held_tokens,
    planned_batches,
    planned_size,
    probe_records,
    shape_of,
    time_batches,
    write_probe,
)
from components.teacher_cache.planner import (
    CacheSize,
    CaptureSeconds,
    GridRuns,
    TimedBatch,
    capture_seconds,
    runs_of_grid,
    spread_places,
    spread_shapes,
)
from components.teacher_cache.shard_plan import CapturePlan, CaptureSettings, PlannedRow, plan_capture
from components.training.teacher_rates import RateProbe, TeacherRates, measure_rates, release_memory

NUM_TIMED_BATCHES = 4


@dataclass(frozen=True)
class ChoicePlan:
    """One line of the table of entries; `size` is that of the whole cache."""

    choice: EntryChoice
    is_configured: bool
    mean_entries: float
    coverage: float
    size: CacheSize
    error: LawError


@dataclass(frozen=True)
class CachePlan:
    """All that is known before the capture. `existing`: the cache that is there for this very identity."""

    num_rows: int
    num_probed_records: int
    num_probed_tokens: int
    num_error_tokens: int
    padded_tokens: int
    size: CacheSize
    capture: CaptureSeconds
    timed: list[TimedBatch]
    choices: list[ChoicePlan]
    rates: TeacherRates
    runs: GridRuns
    micro_batches_per_epoch: float
    free_bytes: int
    held_tokens: int
    existing: CacheManifest | None
    device: str


@dataclass(frozen=True)
class PlanInputs:
    """Both loads give the base on the device: in the cache's precision, and as a training starts with it."""

    rows: Sequence[TrainingRow]
    identity: CacheIdentity
    settings: CaptureSettings
    vocabulary_size: int
    load_teacher: Callable[[], Any]
    load_student: Callable[[], Any]
    device: torch.device
    pad_token_id: int


def plan_cache(
    inputs: PlanInputs,
    objectives: Mapping[str, Objective],
    num_seeds: int,
    training: TrainingParams,
    params: CachePlanParams,
    *,
    target: Path,
    work: Path,
) -> CachePlan:
    """Probe the base with some rows; `target` is where the cache would be, `work` a scratch folder of the same disk."""
    capture_plan, sample = choose_sample(inputs, params.num_records)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        teacher = _TeacherProbe.of(inputs, capture_plan, sample)
        release_memory()
        cache = write_probe(Path(scratch) / "cache", teacher.probe, inputs.identity, inputs.vocabulary_size)
        overhead = file_bytes(Path(scratch) / "cache", cache, len(capture_plan.new))
        with_prompt = any(objective.prompt_tokens == "distil_only" for objective in objectives.values()) and cache.holds_prompt
        rate_probe = RateProbe(
            inputs.load_student,
            teacher.probe.rows,
            cache,
            training,
            with_prompt,
            inputs.device,
            inputs.pad_token_id,
            Path(scratch) / "trainers",
        )
        rates = measure_rates(rate_probe)
    choices = [_choice_plan(choice, teacher, capture_plan, overhead) for choice in teacher.errors]
    planned = [row for shard in capture_plan.new for row in shard.rows]
    return CachePlan(
        num_rows=len(inputs.rows),
        num_probed_records=len(sample),
        num_probed_tokens=sum(row.num_kept for row in sample),
        num_error_tokens=teacher.num_error_tokens,
        padded_tokens=sum(shape.padded_tokens for shape in teacher.shapes),
        size=next(choice.size for choice in choices if choice.is_configured),
        capture=teacher.seconds,
        timed=teacher.timed,
        choices=choices,
        rates=rates,
        runs=count_runs(objectives, num_seeds, training, len(inputs.rows), params.num_epochs),
        micro_batches_per_epoch=len(inputs.rows) / training.micro_batch_size,
        free_bytes=free_bytes(work),
        held_tokens=held_tokens(target, inputs.identity, planned),
        existing=existing_cache(target, inputs.identity),
        device=device_name(inputs.device),
    )


def choose_sample(inputs: PlanInputs, num_records: int) -> tuple[CapturePlan, list[PlannedRow]]:
    """The whole capture as the stage would plan it from nothing, and the rows to probe: of every length."""
    if not len(inputs.rows):
        raise DataError("the training split has no rows, so there is nothing to cache. Run: dvc repro -f -s prepare_data")
    plan = plan_capture(inputs.rows, inputs.identity, inputs.settings)
    rows = [row for shard in plan.new for row in shard.rows]
    if not plan.num_tokens:
        raise DataError(
            f"none of the {len(rows)} training rows has a token to cache (teacher_cache.positions: {inputs.identity.positions}). "
            "Set positions: all, or give data with answers and run: dvc repro prepare_data"
        )
    places = spread_places([row.length for row in rows if row.num_kept], num_records)
    kept = [row for row in rows if row.num_kept]
    return plan, [kept[place] for place in places]


@dataclass(frozen=True)
class _TeacherProbe:
    """What the frozen base was asked."""

    probe: ProbedRecords
    timed: list[TimedBatch]
    shapes: list[Any]
    seconds: CaptureSeconds
    errors: dict[EntryChoice, LawError]
    num_error_tokens: int
    configured: EntryChoice
    counts_V: npt.NDArray[Any]
    identity: CacheIdentity

    @classmethod
    def of(cls, inputs: PlanInputs, plan: CapturePlan, sample: list[PlannedRow]) -> "_TeacherProbe":
        identity, rows = inputs.identity, inputs.rows
        layout = EntryLayout.of(inputs.vocabulary_size, identity.probability_bits)
        choices = entry_choices(identity, inputs.vocabulary_size)
        widest = max(identity.max_entries, *(choice.max_entries for choice in choices))
        started = time.perf_counter()
        model = inputs.load_teacher()
        capture = LawCapture(model, LawSettings(identity.max_entries, identity.temperature, identity.positions))
        load = time.perf_counter() - started
        wide = LawCapture(model, LawSettings(widest, identity.temperature, identity.positions))
        probe = probe_records(wide, rows, sample, identity, choices, layout, inputs.settings.batch_tokens)
        batches = planned_batches(plan.new, inputs.settings.batch_tokens)
        shapes = [shape_of(batch) for batch in batches]
        chosen = [batches[place] for place in spread_shapes(shapes, NUM_TIMED_BATCHES)]
        timed = time_batches(capture, rows, chosen, identity, layout)
        through_logits = capture.goes_through_logits is not None
        chunks = probed_logits(
            model, probe.rows, identity.positions, through_logits=through_logits, num_columns=inputs.vocabulary_size
        )
        errors, num_error_tokens = law_errors(
            chunks, choices, probability_bits=identity.probability_bits, temperature=identity.temperature
        )
        seconds = capture_seconds(shapes, timed, load, overlaps=has_spare_processor(inputs.device))
        configured = configured_choice(identity, inputs.vocabulary_size)
        kept_rows = (rows[row.place] for shard in plan.new for row in shard.rows)
        counts_V = count_contexts(kept_rows, identity.positions, inputs.vocabulary_size)
        return cls(probe, timed, shapes, seconds, errors, num_error_tokens, configured, counts_V, identity)


def has_spare_processor(device: torch.device) -> bool:
    """Whether encoding runs beside the teacher: on a processor that torch's threads leave free, or all of them beside a GPU."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors > (torch.get_num_threads() if device.type == "cpu" else 1)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} torch thread{'s' if torch.get_num_threads() > 1 else ''}"


def _choice_plan(choice: EntryChoice, teacher: _TeacherProbe, plan: CapturePlan, overhead: int) -> ChoicePlan:
    sums = teacher.probe.choices[choice]
    return ChoicePlan(
        choice,
        choice == teacher.configured,
        sums.num_entries / sums.num_tokens,
        sums.covered / sums.num_tokens,
        planned_size(teacher.probe, choice, plan, teacher.counts_V, teacher.identity, overhead),
        teacher.errors[choice],
    )


def count_runs(
    objectives: Mapping[str, Objective], num_seeds: int, training: TrainingParams, num_rows: int, num_epochs: float | None
) -> GridRuns:
    """Cells of the grid by what they need of the teacher."""
    kinds = [
        "online"
        if objective.distils and objective.teacher == "online"
        else "distilling"
        if objective.distils
        else "scoring"
        if objective.needs_teacher
        else "plain"
        for objective in objectives.values()
    ]
    counts = [kinds.count(kind) * num_seeds for kind in ("distilling", "scoring", "plain", "online")]
    return runs_of_grid(
        *counts,
        num_rows=num_rows,
        num_steps=training.num_steps,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        num_epochs=num_epochs,
    )


def plan_figures(plan: CachePlan) -> dict[str, Any]:
    """Every figure of the plan as JSON, with the sums that are properties."""
    existing = None if plan.existing is None else {"num_bytes": plan.existing.num_bytes, "num_tokens": plan.existing.num_tokens}
    choices = [{**asdict(choice), "size": _size_figures(choice.size)} for choice in plan.choices]
    capture = {**asdict(plan.capture), "total": plan.capture.total}
    figures = {field.name: getattr(plan, field.name) for field in fields(plan)}
    parts = {"timed": [asdict(batch) for batch in plan.timed], "rates": asdict(plan.rates), "runs": asdict(plan.runs)}
    return {**figures, **parts, "size": _size_figures(plan.size), "capture": capture, "choices": choices, "existing": existing}


def _size_figures(size: CacheSize) -> dict[str, Any]:
    sums = {name: getattr(size, name) for name in ("total_bytes", "bytes_per_token", "relative_error")}
    return {**asdict(size), **sums}


def existing_cache(target: Path, identity: CacheIdentity) -> CacheManifest | None:
    """The manifest of the cache that is there already, if it is the one that would be captured; its bytes are not verified."""
    try:
        manifest = read_manifest(target)
    except ArtifactError:
        return None
    return manifest if manifest.identity == identity else None
