"""Early stopping by the validation nll: the oldest remedy against forgetting, and a switch for every preset.

Every `every_steps` steps the nll of the validation rows is taken (sum over target tokens, divided once). When it has not fallen
by `min_delta_nats` for `patience` looks in a row the training ends; the weights of the best look are what the training leaves.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from components.params import EarlyStoppingParams
from components.training.callbacks import MetricSink, Observer
from components.training.ranks import from_first, wait_for_all
from components.training.sharded_state import split_like, whole
from components.training.sharding import reshard
from components.training.target_scoring import ScoredRow, score_targets

BATCH_TOKENS = 8192


class EarlyStopping(Observer):
    """State: the best look, how many looks since have not been better, and the nll of every look.

    Best weights lie in `folder`, one file a look, and are removed only when a checkpoint knows a better one: a killed run
    finds the file that its checkpoint speaks of. `rows` are all watched; `sink` is told the nll of every look.
    """

    def __init__(
        self,
        params: EarlyStoppingParams,
        rows: Sequence[ScoredRow],
        *,
        pad_token_id: int,
        folder: Path,
        sink: MetricSink | None = None,
    ) -> None:
        assert rows, "early stopping needs validation rows"
        self._sink = sink
        self._params, self._rows, self._folder, self._pad_token_id = params, list(rows), folder, pad_token_id
        self._best_nll = float("inf")
        self._best_step = 0
        self._num_worse = 0
        self._looks: list[tuple[int, float]] = []

    @property
    def looks(self) -> list[tuple[int, float]]:
        """(step, validation nll in nats per target token) of every look."""
        return list(self._looks)

    @property
    def is_over(self) -> bool:
        """The looks have not been better for long enough: the training ends here."""
        return self._num_worse >= self._params.patience

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for step, nll in self._looks if state.is_world_process_zero else []:  # a killed process may not have sent them
            self._tell(step, nll)

    def _tell(self, step: int, nll: float) -> None:
        if self._sink is not None:
            self._sink(step, {"early_stopping/validation_nll": nll})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if state.global_step % self._params.every_steps and state.global_step < state.max_steps:
            return
        model: nn.Module = given["model"]
        nll = from_first(self._validation_nll(model), model)
        self._looks.append((state.global_step, nll))
        if state.is_world_process_zero:
            self._tell(state.global_step, nll)
        if nll < self._best_nll - self._params.min_delta_nats:
            self._best_nll, self._best_step, self._num_worse = nll, state.global_step, 0
            self._keep(model, writes=state.is_world_process_zero)
            return
        self._num_worse += 1
        if self.is_over:
            control.should_training_stop = True
            control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            for file in self._folder.glob("step-*.safetensors"):
                if file != self._file():
                    file.unlink()

    def _validation_nll(self, model: nn.Module) -> float:
        parts = score_targets(model, self._rows, pad_token_id=self._pad_token_id, batch_tokens=BATCH_TOKENS)
        num_targets = sum(len(part) for part in parts)
        return sum(float(part.nll.double().sum()) for part in parts) / max(1, num_targets)

    def _file(self) -> Path:
        return self._folder / f"step-{self._best_step}.safetensors"

    def _keep(self, model: nn.Module, *, writes: bool) -> None:
        """Trained weights only: with an adapter the base's own stay where they are. Whole, before any rank goes on."""
        reshard(model)
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        kept = {name: whole(weight, writes) for name, weight in trained.items()}  # of shards every rank sends its own
        if writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._file().with_suffix(".partial")
            save_file({name: weight.contiguous() for name, weight in kept.items()}, partial)
            partial.replace(self._file())
        wait_for_all()

    def restore_best(self, model: nn.Module) -> int:
        """Put the best look's weights into the model; returns its step."""
        if self._best_step:
            kept = load_file(self._file())
            reshard(model)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name in kept:
                        weight.copy_(split_like(kept[name], weight))
        return self._best_step

    def state_dict(self) -> dict[str, Any]:
        best = None if self._best_step == 0 else self._best_nll  # JSON knows no infinity
        return {"best_nll": best, "best_step": self._best_step, "num_worse": self._num_worse, "looks": self._looks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best_nll = float("inf") if state["best_nll"] is None else state["best_nll"]
        self._best_step, self._num_worse = state["best_step"], state["num_worse"]
        self._looks = [(step, nll) for step, nll in state["looks"]]
