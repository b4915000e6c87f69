"""What happens around the Trainer's steps: the threshold moves, checkpoints are sealed, curves are sent, signals are honoured."""

import json
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components.artifacts import write_json
from components.errors import TrainingError
from components.training.checkpoints import seal_checkpoint
from components.training.ranks import refuse_whole_copies

if TYPE_CHECKING:
    from components.training.trainer import ObjectiveTrainer

MetricSink = Callable[[int, dict[str, float]], None]
OBJECTIVE_STATE = "objective_state.json"


class Observer(TrainerCallback, ABC):
    """A callback with a state that travels in the checkpoint."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ObjectiveCallback(TrainerCallback):
    """Moves the threshold after each step, keeps the objective's state in the checkpoint, seals it; logs the last step too."""

    def __init__(self, trainer: "ObjectiveTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        refuse_whole_copies(self._trainer, is_sharded=self._trainer.is_sharded or self._trainer.is_fsdp_enabled)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.finish_step()
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        objective_state = self._trainer.state_dict()
        self._trainer.accelerator.wait_for_everyone()  # each rank writes a file of its own into the checkpoint
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            write_json(folder / OBJECTIVE_STATE, {**objective_state, "form": checkpoint_form(self._trainer)})
            seal_checkpoint(folder)


def checkpoint_form(trainer: "ObjectiveTrainer") -> str:
    """Who can go on from its checkpoints: any number of ranks from `whole` ones, else only ranks like these."""
    engine = "DeepSpeed" if trainer.is_deepspeed_enabled else "accelerate's FSDP" if trainer.is_fsdp_enabled else None
    return "whole" if engine is None else f"{engine} on {trainer.accelerator.num_processes} processes"


def restore_objective(trainer: "ObjectiveTrainer", checkpoint: Path) -> None:
    """Give the trainer the objective's state of a checkpoint, unless the weights beside it are cut for other ranks than these."""
    state = json.loads((checkpoint / OBJECTIVE_STATE).read_text(encoding="utf-8"))
    written, read = state.get("form", "whole"), checkpoint_form(trainer)
    if written != read:
        raise TrainingError(
            f"{checkpoint} was written by another engine (form: {written}) than this run reads (form: {read}). Give `launch` in "
            f"params.yaml its old values to go on, or start anew after: rm -r {checkpoint.parent}"
        )
    trainer.load_state_dict(state)


class MetricSinkCallback(TrainerCallback):
    """Hands every log line to a function (the tracker's), numbers only.

    A resumed training hands over those before its checkpoint again: a process that was killed may have kept them to itself.
    """

    def __init__(self, sink: MetricSink) -> None:
        self._sink = sink

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for line in state.log_history if state.is_world_process_zero else []:
            if "loss" in line:
                self._sink(int(line["step"]), {name: float(value) for name, value in line.items() if name != "step"})

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self._sink(state.global_step, {name: float(value) for name, value in logs.items()})


class StopSignalCallback(TrainerCallback):
    """SIGTERM ends the training after the running step with a checkpoint; the stage then ends with code 143, never 0."""

    def __init__(self) -> None:
        self.is_stopped = False
        self._previous: Any = None

    def __enter__(self) -> "StopSignalCallback":
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_stopped = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if distributed.is_available() and distributed.is_initialized():
            votes = torch.tensor(float(self.is_stopped), device=args.device)
            distributed.all_reduce(votes)  # the signal reaches the ranks at different steps; they must stop after the same one
            self.is_stopped = bool(votes > 0)
        if self.is_stopped:
            control.should_save = True
            control.should_training_stop = True
