"""One post-training run: a student that starts as the base, trained with one objective and one seed. Resumable."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments, set_seed

from components.artifacts import fingerprint_json
from components.errors import CacheMismatchError, InterruptedStageError, ParamsError
from components.objectives.presets import Objective
from components.params import TrainingParams
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.writer import CacheRow
from components.training.alignment import prove_alignment
from components.training.callbacks import MetricSink, MetricSinkCallback, ObjectiveCallback, StopSignalCallback
from components.training.checkpoints import latest_checkpoint
from components.training.collator import TeacherCollator
from components.training.lora import add_adapter, merge_adapter
from components.training.progress import show_progress
from components.training.threshold import LaggedThreshold
from components.training.trainer import ObjectiveTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PostTrainingResult:
    """The trained model (LoRA already merged), its curve (one dict per log line) and where it resumed, if it did."""

    model: "PreTrainedModel"
    curve: list[dict[str, float]]
    resumed_at_step: int


def post_train_model(
    model: "PreTrainedModel",
    rows: Sequence[CacheRow],
    cache: TeacherCacheReader,
    objective: Objective,
    params: TrainingParams,
    *,
    seed: int,
    device: torch.device,
    pad_token_id: int,
    work: Path,
    sink: MetricSink,
) -> PostTrainingResult:
    """Train `model` on `rows`; checkpoints live in `work`, and a run that finds one there goes on from it."""
    set_seed(seed)
    refuse_other_temperature(objective, cache)
    checkpoint = latest_checkpoint(work)
    student = add_adapter(model, params.lora) if params.lora.enabled else model
    collator = TeacherCollator(pad_token_id, cache)
    trainer = ObjectiveTrainer(
        model=student,
        args=training_arguments(params, seed, device, work),
        train_dataset=rows,
        data_collator=collator,
        objective=objective,
        threshold=LaggedThreshold(objective, initial_scores(objective, cache)),
    )
    # The Trainer loads a checkpoint later, and a new adapter adds nothing: here the student is still the base.
    prove_alignment(student, collator(spread_rows(rows, params.micro_batch_size)), cache.manifest.identity.precision)
    with StopSignalCallback() as stop:
        state = ObjectiveCallback(trainer)
        for callback in (state, stop, MetricSinkCallback(sink)):
            trainer.add_callback(callback)
        show_progress(trainer, work.name.rpartition("-")[0])
        if checkpoint is not None:
            state.restore(checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.is_stopped and trainer.state.global_step < params.num_steps:
            raise InterruptedStageError(
                f"stopped at step {trainer.state.global_step} of {params.num_steps}; a checkpoint is kept, "
                "the same command goes on from it"
            )
    trained = merge_adapter(student) if params.lora.enabled else model
    return PostTrainingResult(trained, training_curve(trainer), int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)


def refuse_other_temperature(objective: Objective, cache: TeacherCacheReader) -> None:
    made_at = cache.manifest.identity.temperature
    if objective.distils and objective.temperature != made_at:
        raise CacheMismatchError(
            f"the objective distils at temperature {objective.temperature}, the teacher cache was made at {made_at}. "
            f"In params.yaml give the objective temperature: {made_at}, or set teacher_cache.temperature: {objective.temperature}"
        )


def spread_rows(rows: Sequence[CacheRow], num_wanted: int) -> list[CacheRow]:
    """Up to `num_wanted` rows from all over the data."""
    return [rows[index] for index in range(0, len(rows), -(-len(rows) // num_wanted))]


def run_fingerprint(objective: Objective, params: TrainingParams, cache: CacheIdentity, seed: int) -> str:
    """Everything that decides the result: a checkpoint is resumed only under the same fingerprint."""
    return fingerprint_json(
        {"objective": asdict(objective), "training": params.model_dump(), "cache": asdict(cache), "seed": seed}
    )


def initial_scores(objective: Objective, cache: TeacherCacheReader) -> torch.Tensor | None:
    """The base model's scores of all training targets, [N], from the cache: the student's own at step 0; None: no choice."""
    if not objective.needs_threshold:
        return None
    if objective.score == "entropy":
        return cache.column("entropy")
    if objective.score == "excess":
        return None  # zero for every token up to rounding, which must not decide: the first step takes them all
    return -cache.column("label_logprob")


def training_arguments(params: TrainingParams, seed: int, device: torch.device, work: Path) -> TrainingArguments:
    """Our few knobs in the Trainer's words. Nothing is reported or saved but by our own callbacks."""
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=params.num_steps,
        per_device_train_batch_size=params.micro_batch_size,
        gradient_accumulation_steps=accumulation_steps(params, int(os.environ.get("WORLD_SIZE", "1"))),
        learning_rate=params.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(params.warmup_fraction * params.num_steps),
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        bf16=params.precision == "bf16",
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        save_steps=params.save_every_steps,
        save_total_limit=2,
        logging_steps=params.log_every_steps,
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        average_tokens_across_devices=True,
        disable_tqdm=not sys.stderr.isatty(),
    )
    # One process that sees several GPUs would wrap the model in DataParallel and enlarge the step, unasked.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def accumulation_steps(params: TrainingParams, num_processes: int) -> int:
    """Micro-batches of one step on each process: `batch_size` rows a step, however many processes share them."""
    rows_at_once = params.micro_batch_size * num_processes
    if params.batch_size % rows_at_once:
        raise ParamsError(
            f"params.yaml: training.batch_size {params.batch_size} is not a multiple of micro_batch_size "
            f"{params.micro_batch_size} x {num_processes} processes; lower training.micro_batch_size"
        )
    return params.batch_size // rows_at_once


def training_curve(trainer: ObjectiveTrainer) -> list[dict[str, float]]:
    """The log lines of the whole run, those before a resume included."""
    lines: list[dict[str, Any]] = [line for line in trainer.state.log_history if "loss" in line]
    return [{name: float(value) for name, value in line.items()} for line in lines]
