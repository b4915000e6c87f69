"""One post-training run: a student that starts as the base, trained with one objective and one seed. Resumable."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from components.data.training_rows import TrainingRow, count_targets
from components.errors import InterruptedStageError
from components.objectives.objective import Objective
from components.objectives.resolve import warnings_of
from components.params import LoraParams, TrainingParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.alignment import prove_alignment
from components.training.callbacks import MetricSink, MetricSinkCallback, Observer, StopSignalCallback, restore_objective
from components.training.checkpoints import latest_checkpoint
from components.training.collator import ScoreSource, TeacherCollator
from components.training.early_stopping import EarlyStopping
from components.training.lora import add_adapter
from components.training.packing import prove_packing
from components.training.progress import show_progress
from components.training.ranks import refuse_different
from components.training.row_order import RowOrder, spread_rows
from components.training.sharding import reshard, shard_model
from components.training.student_loss import StudentLoss
from components.training.target_scoring import ScoredRow
from components.training.trainer import ObjectiveTrainer
from components.training.trainer_setup import build_trainer, refuse_missing_inputs
from components.training.whole_model import whole_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from components.training.probe import TrainingProbe  # not imported: editing the probe must not train the members anew

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PostTrainingResult:
    """The trained model (LoRA already merged), its curve (one dict per log line) and where it resumed, if it did.

    With early stopping: the step whose weights these are, and (step, validation nll) of every look. `probe`: its record, and
    these two with it. What training cost, whatever step was kept: its steps, and the input and target tokens of all their rows.
    """

    model: "PreTrainedModel"
    curve: list[dict[str, float]]
    resumed_at_step: int
    best_step: int | None = None
    validation_looks: tuple[tuple[int, float], ...] = ()
    probe: dict[str, Any] | None = None
    num_steps: int = 0
    num_input_tokens: int = 0
    num_target_tokens: int = 0

    @property
    def amounts(self) -> dict[str, int]:
        """What the stage tells of its costs, besides seconds and bytes."""
        names = ("resumed_at_step", "num_steps", "num_input_tokens", "num_target_tokens")
        return {name: getattr(self, name) for name in names}


def post_train_model(
    model: "PreTrainedModel",
    rows: Sequence[TrainingRow],
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
    make_probe: Callable[[ObjectiveTrainer], "TrainingProbe"] | None = None,
    shards: bool = False,
) -> PostTrainingResult:
    """Train `model` on `rows`; checkpoints live in `work`, and a run that finds one there goes on from it.

    `cache` may be None where the objective needs no teacher, `scores` where it needs no column, the token classes [V] where
    no class is protected, `validation` where nothing stops early. `shards`: each rank holds a slice, the first gets the whole.
    """
    set_seed(seed)
    refuse_missing_inputs(objective, cache, scores, class_of_token_V)
    warn_of(objective, work.name)
    checkpoint = agreed_checkpoint(work)
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
        student_loss=sharded_loss(objective, student, device) if shards else None,
    )
    prove_rows(student, rows, cache, params, pad_token_id)
    probe = None if make_probe is None else make_probe(trainer)
    stopper = early_stopping(params, validation, pad_token_id, work, sink)
    add_observers(trainer, early_stopping=stopper, probe=probe)  # in this order: the probe must know which step is the last
    run_to_the_end(trainer, checkpoint, stopper, sink)
    result = result_of(trainer, student, params.lora, checkpoint, stopper, probe, sink)
    num_inputs, num_targets = tokens_of_steps(trainer, rows)
    return replace(result, num_steps=trainer.state.global_step, num_input_tokens=num_inputs, num_target_tokens=num_targets)


def agreed_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint, the same one for every rank."""
    checkpoint = latest_checkpoint(work)
    refuse_different("checkpoint", "none" if checkpoint is None else checkpoint.name)
    return checkpoint


def sharded_loss(objective: Objective, student: Any, device: torch.device) -> StudentLoss:
    """Cut the student over the ranks; its loss is made before, for an online teacher stays whole."""
    student_loss = StudentLoss(objective, student.to(device))
    shard_model(student)
    return student_loss


def warn_of(objective: Objective, name: str) -> None:
    for warning in warnings_of(objective):
        LOGGER.warning("%s: %s", name, warning)


def prove_rows(
    student: Any, rows: Sequence[TrainingRow], cache: TeacherCacheReader | None, params: TrainingParams, pad_token_id: int
) -> None:
    """On one micro-batch: this model keeps packed rows apart, and the cache holds its own losses of them.

    The Trainer loads a checkpoint later, and a new adapter adds nothing: here the student is still the base.
    """
    spread = spread_rows(rows, params.micro_batch_size)
    if params.packing:
        prove_packing(student, spread, pad_token_id)
    if cache is not None:
        proof = TeacherCollator(pad_token_id, cache, packing=params.packing)
        prove_alignment(student, proof(spread), cache.manifest.identity.precision, cache.manifest.identity.temperature)
    reshard(student)  # or the optimiser would be given the passing whole copies of these forward passes


def add_observers(trainer: ObjectiveTrainer, **observers: Observer | None) -> None:
    """Under the names that their states have in the checkpoint."""
    for name, observer in observers.items():
        if observer is not None:
            trainer.add_observer(name, observer)


def run_to_the_end(trainer: ObjectiveTrainer, checkpoint: Path | None, stopper: EarlyStopping | None, sink: MetricSink) -> None:
    """Train, from the checkpoint where there is one; a stop signal ends it with an error that says how to go on."""
    with StopSignalCallback() as stop:
        for callback in (stop, MetricSinkCallback(sink)):
            trainer.add_callback(callback)
        show_progress(trainer, Path(str(trainer.args.output_dir)).name.rpartition("-")[0])
        if checkpoint is not None:
            restore_objective(trainer, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        is_over = trainer.state.global_step >= trainer.args.max_steps or (stopper is not None and stopper.is_over)
        if stop.is_stopped and not is_over:
            raise InterruptedStageError(
                f"stopped at step {trainer.state.global_step} of {trainer.args.max_steps}; a checkpoint is kept, "
                "the same command goes on from it"
            )


def early_stopping(
    params: TrainingParams, validation: Sequence[ScoredRow], pad_token_id: int, work: Path, sink: MetricSink
) -> EarlyStopping | None:
    """None unless it is switched on."""
    if not params.early_stopping.enabled:
        return None
    return EarlyStopping(params.early_stopping, validation, pad_token_id=pad_token_id, folder=work / "best", sink=sink)


def restore_best(
    student: Any, trainer: ObjectiveTrainer, stopper: EarlyStopping, probe: "TrainingProbe | None", sink: MetricSink
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


def probe_record(probe: "TrainingProbe", stopper: EarlyStopping | None, best_step: int | None) -> dict[str, Any]:
    """With the looks of early stopping; without it `best_step` is None and there are none."""
    looks = [] if stopper is None else [{"step": step, "nll": nll} for step, nll in stopper.looks]
    return {**probe.record(), "best_step": best_step, "validation_looks": looks}


def result_of(
    trainer: ObjectiveTrainer,
    student: Any,
    lora: LoraParams,
    checkpoint: Path | None,
    stopper: EarlyStopping | None,
    probe: "TrainingProbe | None",
    sink: MetricSink,
) -> PostTrainingResult:
    """The best look's weights, where there are looks, in a model of the base's architecture."""
    best_step = None if stopper is None else restore_best(student, trainer, stopper, probe, sink)
    return PostTrainingResult(
        model=whole_model(trainer, student, lora),
        curve=training_curve(trainer),
        resumed_at_step=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        best_step=best_step,
        validation_looks=() if stopper is None else tuple(stopper.looks),
        probe=None if probe is None else probe_record(probe, stopper, best_step),
    )


def tokens_of_steps(trainer: ObjectiveTrainer, rows: Sequence[TrainingRow]) -> tuple[int, int]:
    """Input and target tokens of all steps so far. The order of the rows tells them, so that a resumed run counts like one that
    was never stopped; padding is none of them."""
    num_drawn = trainer.state.global_step * trainer.rows_per_step
    seen = [rows[place] for place in RowOrder(len(rows), num_drawn, trainer.args.seed)]
    return sum(len(row.input_ids) for row in seen), sum(count_targets(row) for row in seen)


def training_curve(trainer: ObjectiveTrainer) -> list[dict[str, float]]:
    """The log lines of the whole run, those before a resume included."""
    lines: list[dict[str, Any]] = [line for line in trainer.state.log_history if "loss" in line]
    return [{name: float(value) for name, value in line.items()} for line in lines]
