"""Progress of long training: the Trainer's bar on a terminal, a plain line now and then in a log."""

import sys
import time
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class LineProgressCallback(TrainerCallback):
    """One line every few seconds where no terminal is watched (logs of DVC, Prefect, CI), in place of bars and dictionaries."""

    def __init__(self, name: str, seconds_between_lines: float = 15.0) -> None:
        self._name = name
        self._interval = seconds_between_lines
        self._started = self._last = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = self._last = time.monotonic()
        self._first_step = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        now = time.monotonic()
        is_due = now - self._last >= self._interval or state.global_step >= state.max_steps
        if not (state.is_world_process_zero and is_due and logs and "loss" in logs):
            return
        self._last = now
        left = (now - self._started) / max(1, state.global_step - self._first_step) * (state.max_steps - state.global_step)
        shown = ", ".join(f"{name} {float(logs[name]):.4f}" for name in ("loss", "nll", "masked_fraction") if name in logs)
        print(f"{self._name}: step {state.global_step}/{state.max_steps}, {shown}, {left:.0f} s left", flush=True)


def show_progress(trainer: Trainer, name: str) -> None:
    """The Trainer's own bar on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LineProgressCallback(name))
