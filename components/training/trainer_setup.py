"""How a training is put together: the Trainer's arguments, its collator, its first threshold; what is refused before it starts.

Shapes: N target tokens of all training rows, V vocabulary.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from components.artifacts import fingerprint_row
from components.data.training_rows import TrainingRow, count_targets
from components.errors import CacheMismatchError, ParamsError
from components.objectives.objective import STATIC_SCORES, Objective
from components.objectives.weights import static_scores
from components.params import TrainingParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.callbacks import ObjectiveCallback
from components.training.collator import ScoreSource, TeacherCollator
from components.training.student_loss import StudentLoss
from components.training.threshold import ScoreThreshold
from components.training.trainer import ObjectiveTrainer


def build_trainer(
    student: Any,
    rows: Sequence[TrainingRow],
    cache: TeacherCacheReader | None,
    objective: Objective,
    params: TrainingParams,
    *,
    seed: int,
    device: torch.device,
    pad_token_id: int,
    work: Path,
    scores: ScoreSource | None = None,
    class_of_token_V: torch.Tensor | None = None,
    student_loss: StudentLoss | None = None,
) -> ObjectiveTrainer:
    """The Trainer with its collator and its threshold; it moves and saves its state by the callback added here.

    `student_loss`: made beforehand, where the student has been sharded since and its online teacher must not be.
    """
    collator = TeacherCollator(
        pad_token_id,
        cache if objective.needs_teacher else None,
        scores=scores,
        columns=objective.columns,
        packing=params.packing,
        with_prompt=objective.prompt_tokens == "distil_only",
    )
    trainer = ObjectiveTrainer(
        model=student,
        args=training_arguments(params, seed, device, work),
        train_dataset=rows,
        data_collator=collator,
        objective=objective,
        threshold=ScoreThreshold(objective, initial_scores(objective, rows, cache, scores)),
        class_of_token_V=class_of_token_V,
        student_loss=student_loss,
    )
    trainer.add_callback(ObjectiveCallback(trainer))
    return trainer


def refuse_missing_inputs(
    objective: Objective,
    cache: TeacherCacheReader | None,
    scores: ScoreSource | None,
    class_of_token_V: torch.Tensor | None,
) -> None:
    """What the objective needs must be there, and the cache must be made at its temperature, with the prompt where it is used."""
    assert cache is not None or not objective.needs_teacher, "this objective needs a teacher cache"
    assert scores is not None or not objective.columns, "this objective needs token scores"
    assert class_of_token_V is not None or not objective.protect, "protected classes need the class of every token"
    if cache is None:
        return
    if objective.needs_label_logprob and not cache.knows("label_logprob"):
        raise CacheMismatchError(
            f"score: {objective.score} needs the base's logprob of every label, which the laws imported from "
            f"{cache.manifest.identity.source} do not tell. Choose another score, or set teacher_cache.source: capture in "
            "params.yaml and run: dvc repro cache_teacher"
        )
    if not objective.distils or objective.teacher == "online":
        return
    made_at = cache.manifest.identity.temperature
    if objective.temperature != made_at:
        raise CacheMismatchError(
            f"the objective distils at temperature {objective.temperature}, the teacher cache was made at {made_at}. "
            f"In params.yaml give the objective temperature: {made_at}, or set teacher_cache.temperature: {objective.temperature}"
        )
    if objective.prompt_tokens == "distil_only" and not cache.holds_prompt:
        raise CacheMismatchError(
            "the objective distils prompt tokens, the teacher cache has none. Set teacher_cache.positions: all in params.yaml "
            "and run: dvc repro cache_teacher"
        )


def initial_scores(
    objective: Objective, rows: Sequence[TrainingRow], cache: TeacherCacheReader | None, scores: ScoreSource | None
) -> torch.Tensor | None:
    """Scores of all training targets before the first step, [N]; None where there is no choice, or none is known yet.

    The student is still the base then, so the cache knows them; a static score keeps them.
    """
    if not objective.needs_threshold:
        return None
    known_of_base = "entropy" if objective.score == "entropy" else "label_logprob"
    if objective.score not in STATIC_SCORES and (cache is None or not cache.knows(known_of_base)):
        return None  # the first step takes every token, and its scores make the first threshold
    distinct = list({fingerprint_row(row.input_ids, row.is_target): row for row in rows}.items())
    records = [_known_columns(objective, name, row, cache, scores) for name, row in distinct]
    known = {column: torch.cat([record[column] for record in records]) for column in records[0]}
    if objective.score == "entropy":
        return known["entropy"]
    if objective.score == "student_nll":
        return -known["label_logprob"]
    if objective.score == "excess":
        return -known["label_logprob"] - known["reference_nll"]
    return static_scores(objective, known.get("label_logprob"), known)


def _known_columns(
    objective: Objective, name: str, row: TrainingRow, cache: TeacherCacheReader | None, scores: ScoreSource | None
) -> dict[str, torch.Tensor]:
    """Base logprob and entropy of a row's targets, and the columns that the score is made of."""
    found: dict[str, torch.Tensor] = {}
    if cache is not None:
        statistics = cache.read_statistics(name, row.is_target)
        found |= {column: statistics[column] for column in ("label_logprob", "entropy")}
    if objective.columns:
        assert scores is not None
        columns = scores.read(name, count_targets(row))
        found |= {column: columns[column].float() for column in objective.columns}
    return found


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
