"""One post-training run: a student that starts as the base, trained with one objective and one seed. Resumable."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from components.errors import InterruptedStageError
from components.objectives.objective import Objective
from components.objectives.resolve import warnings_of
from components.params import TrainingParams
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.writer import CacheRow
from components.training.alignment import prove_alignment
from components.training.callbacks import MetricSink, MetricSinkCallback, StopSignalCallback, restore_objective
from components.training.checkpoints import latest_checkpoint
from components.training.collator import ScoreSource, TeacherCollator
from components.training.early_stopping import EarlyStopping
from components.training.lora import add_adapter, merge_adapter
from components.training.packing import prove_packing
from components.training.probe import TrainingProbe
from components.training.progress import show_progress
from components.training.row_order import spread_rows
from components.training.target_scoring import ScoredRow
from components.training.trainer import ObjectiveTrainer
from components.training.trainer_setup import build_trainer, refuse_missing_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PostTrainingResult:
    """The trained model (LoRA already merged), its curve (one dict per log line) and where it resumed, if it did.

    With early stopping: the step whose weights these are, and (step, validation nll) of every look. `probe`: its record, and
    these two with it.
    """

    model: "PreTrainedModel"
    curve: list[dict[str, float]]
    resumed_at_step: int
    best_step: int | None = None
    validation_looks: tuple[tuple[int, float], ...] = ()
    probe: dict[str, Any] | None = None


def post_train_model(
    model: "PreTrainedModel",
    rows: Sequence[CacheRow],
    cache: TeacherCacheReader | None,
    objective: Objective,
    params: TrainingParams,
    *,
    seed: int,
    device: torch.device,
    pad_token_id: int,
    work: Path,
    sink: MetricSink,
    scores: ScoreSource | None = None,
    class_of_token_V: torch.Tensor | None = None,
    validation: Sequence[ScoredRow] = (),
    make_probe: Callable[[ObjectiveTrainer], TrainingProbe] | None = None,
) -> PostTrainingResult:
    """Train `model` on `rows`; checkpoints live in `work`, and a run that finds one there goes on from it.

    `cache` may be None where the objective needs no teacher, `scores` where it needs no column, the token classes [V] where
    no class is protected, `validation` where nothing stops early.
    """
    set_seed(seed)
    refuse_missing_inputs(objective, cache, scores, class_of_token_V)
    for warning in warnings_of(objective):
        LOGGER.warning("%s: %s", work.name, warning)
    checkpoint = latest_checkpoint(work)
    student = add_adapter(model, params.lora) if params.lora.enabled else model
    trainer = build_trainer(
        student,
        rows,
        cache,
        objective,
        params,
        seed=seed,
        device=device,
        pad_token_id=pad_token_id,
        work=work,
        scores=scores,
        class_of_token_V=class_of_token_V,
    )
    if params.packing:
        prove_packing(student, spread_rows(rows, params.micro_batch_size), pad_token_id)
    if cache is not None:
        # The Trainer loads a checkpoint later, and a new adapter adds nothing: here the student is still the base.
        with_prompt = objective.prompt_tokens == "distil_only"
        proof = TeacherCollator(pad_token_id, cache, packing=params.packing, with_prompt=with_prompt)
        batch = proof(spread_rows(rows, params.micro_batch_size))
        prove_alignment(student, batch, cache.manifest.identity.precision, with_prompt=with_prompt)
    probe = None if make_probe is None else make_probe(trainer)
    stopper = early_stopping(params, validation, pad_token_id, work, sink)
    for name, observer in (("early_stopping", stopper), ("probe", probe)):  # the probe must know which step is the last
        if observer is not None:
            trainer.add_observer(name, observer)
    with StopSignalCallback() as stop:
        for callback in (stop, MetricSinkCallback(sink)):
            trainer.add_callback(callback)
        show_progress(trainer, work.name.rpartition("-")[0])
        if checkpoint is not None:
            restore_objective(trainer, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        is_over = trainer.state.global_step >= params.num_steps or (stopper is not None and stopper.is_over)
        if stop.is_stopped and not is_over:
            raise InterruptedStageError(
                f"stopped at step {trainer.state.global_step} of {params.num_steps}; a checkpoint is kept, "
                "the same command goes on from it"
            )
    best_step = None if stopper is None else restore_best(student, trainer, stopper, probe, sink)
    return PostTrainingResult(
        model=merge_adapter(student) if params.lora.enabled else model,
        curve=training_curve(trainer),
        resumed_at_step=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        best_step=best_step,
        validation_looks=() if stopper is None else tuple(stopper.looks),
        probe=None if probe is None else probe_record(probe, stopper, best_step),
    )


def early_stopping(
    params: TrainingParams, validation: Sequence[ScoredRow], pad_token_id: int, work: Path, sink: MetricSink
) -> EarlyStopping | None:
    """None unless it is switched on."""
    if not params.early_stopping.enabled:
        return None
    return EarlyStopping(params.early_stopping, validation, pad_token_id=pad_token_id, folder=work / "best", sink=sink)


def restore_best(
    student: Any, trainer: ObjectiveTrainer, stopper: EarlyStopping, probe: TrainingProbe | None, sink: MetricSink
) -> int:
    """Put the best look's weights into the student, look at what is returned, say which step it is."""
    state = trainer.state
    best_step = stopper.restore_best(student)
    step = best_step or state.global_step  # no look was better than none: the last weights stay
    if state.is_world_process_zero:
        sink(state.global_step, {"early_stopping/best_step": float(step)})
    if probe is not None:
        epoch = (state.epoch or 0.0) * step / max(1, state.global_step)  # passes over the data go with the steps
        probe.look_at_returned(
            student, step=step, epoch=epoch, num_steps=state.max_steps, is_recorder=state.is_world_process_zero
        )
    return best_step


def probe_record(probe: TrainingProbe, stopper: EarlyStopping | None, best_step: int | None) -> dict[str, Any]:
    """With the looks of early stopping; without it `best_step` is None and there are none."""
    looks = [] if stopper is None else [{"step": step, "nll": nll} for step, nll in stopper.looks]
    return {**probe.record(), "best_step": best_step, "validation_looks": looks}


def training_curve(trainer: ObjectiveTrainer) -> list[dict[str, float]]:
    """The log lines of the whole run, those before a resume included."""
    lines: list[dict[str, Any]] = [line for line in trainer.state.log_history if "loss" in line]
    return [{name: float(value) for name, value in line.items()} for line in lines]
