"""transformers.Trainer with the token-level objective in place of its mean cross-entropy.

Shapes: B rows, T positions, N predicted tokens of the micro-batch, V vocabulary.

Losses are summed over tokens and divided once, by the number of target tokens of the whole optimiser step over all micro-batches
and ranks (`num_items_in_batch`), so neither accumulation nor packing nor the number of processes changes the gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import TrainingError
from components.objectives.objective import Objective
from components.training.callbacks import Observer
from components.training.columns import StepColumns, take_columns
from components.training.meters import StepMeters
from components.training.row_order import RowOrder
from components.training.sharded_state import whole
from components.training.sharded_trainer import ShardedTrainer
from components.training.step_tokens import StepPlace, gather_scores, refuse_non_finite, weigher_of
from components.training.student_loss import StudentLoss
from components.training.threshold import ScoreThreshold
from components.training.token_layout import TokenLayout, layout_of
from components.training.token_weigher import TokenWeigher

REPAIR = (
    "Lower training.learning_rate or training.max_grad_norm, or remove that row (its fingerprint is in "
    "artifacts/data/train.arrow)"
)


class ObjectiveTrainer(ShardedTrainer):
    """Adds `objective`, its threshold and what the objective needs to know of tokens (`class_of_token_V`) and teachers."""

    loss_is_scaled_for_ga = True
    objective: Objective

    def __init__(
        self,
        *,
        objective: Objective,
        threshold: ScoreThreshold,
        class_of_token_V: Tensor | None = None,
        student_loss: StudentLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objective = objective
        self.threshold = threshold
        self.class_of_token_V = class_of_token_V
        self.student_loss = StudentLoss(objective, kwargs["model"]) if student_loss is None else student_loss
        self.meters = StepMeters(per_selected_token=objective.normalizer == "selected_tokens")
        self.num_rows = len(self.train_dataset)  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = True  # the Trainer counts the step's target tokens for us only when this is set
        self._observers: dict[str, Observer] = {}
        self._part = 0
        self._selected_in_step: Tensor | float = 0.0
        self._targets_in_step: Tensor | int = 1

    def add_observer(self, name: str, observer: Observer) -> None:
        """A callback whose state travels in the checkpoint under `name`."""
        self._observers[name] = observer
        self.add_callback(observer)

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
        return RowOrder(self.num_rows, self.args.max_steps * self.rows_per_step, self.args.seed)

    @property
    def rows_per_step(self) -> int:
        micro_batches = self.args.gradient_accumulation_steps * self.args.world_size
        return int(self.args.per_device_train_batch_size * micro_batches)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the objective over this micro-batch's tokens / target tokens of the step (x ranks: DDP averages)."""
        assert num_items_in_batch is not None, "the Trainer did not count the step's target tokens"
        columns = take_columns(inputs)
        labels_BT = inputs.pop("labels")
        layout = layout_of(inputs, labels_BT, self.objective.prompt_tokens == "distil_only")
        weigher = self._weigher(layout, columns)
        terms = self.student_loss(model, inputs, layout, columns.teacher, weigher)
        refuse_non_finite(terms, layout, inputs, labels_BT, self.state.global_step, repair=REPAIR)
        weigher.observe(terms.nll_N, terms.entropy_N)
        self.meters.add(terms, layout.is_target_N, self.threshold.value)
        self._part += 1
        self._selected_in_step = self._selected_in_step + (terms.mle_weight_N > 0).sum()
        self._targets_in_step = num_items_in_batch
        num_targets = torch.as_tensor(num_items_in_batch)
        # A step without a target is a zero with a graph: its prompts, divided by nothing, would dwarf every other step.
        loss = terms.loss_sum * (num_targets > 0) / num_targets.clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {"nll": terms.nll_N}) if return_outputs else loss

    def _weigher(self, layout: TokenLayout, columns: StepColumns) -> TokenWeigher:
        part = self._part * self.accelerator.num_processes + self.accelerator.process_index
        place = StepPlace(self.args.seed, self.state.global_step, self.args.max_steps, part)
        return weigher_of(self.objective, layout, columns, self.threshold, self.class_of_token_V, place)

    def finish_step(self) -> None:
        """After the optimiser's step: one threshold for the next step from the scores of all micro-batches and ranks."""
        self._part = 0
        self._selected_in_step = 0.0
        self.state.epoch = self.state.global_step * self.rows_per_step / self.num_rows  # the Trainer takes all for one pass
        if self.threshold.is_lagged:
            scores_N = self.threshold.take_pending().to(self.args.device)
            self.threshold.advance(gather_scores(scores_N))

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Divides by the step's selected tokens where the objective says so; refuses a gradient that is not finite.

        Such a step would make every weight NaN, and its checkpoint with them.
        """
        if self.objective.normalizer == "selected_tokens":
            self._divide_by_selected(model)
        norm = whole(super()._clip_grad_norm(model))  # type: ignore[no-untyped-call]
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(
                f"the gradient's norm is {float(norm)} at step {self.state.global_step} though the loss is finite. Nothing was "
                "saved from this step. Lower training.learning_rate, or set training.precision: fp32"
            )
        return norm

    def _divide_by_selected(self, model: nn.Module) -> None:
        """Gradients were divided by target tokens: how many are selected is known only after the step's last micro-batch."""
        selected = torch.as_tensor(self._selected_in_step, dtype=torch.float64, device=self.args.device)
        if self.accelerator.num_processes > 1:
            selected = self.accelerator.reduce(selected.clone(), reduction="sum")
        if not float(selected):
            return  # nothing is learned in this step; what is distilled stays divided by its target tokens
        factor = float(torch.as_tensor(self._targets_in_step).double()) / float(selected)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds nll, the objective's terms and the mask to every training log; `loss` becomes a mean per target token too."""
        if "loss" in logs:
            logs.update(self.meters.take(self._sums()))
        super().log(logs, start_time)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep beside the Trainer's own; every rank must call this."""
        observed = {name: observer.state_dict() for name, observer in self._observers.items()}
        return {"threshold": self.threshold.state_dict(), "meters": self.meters.state_dict(self._sums()), "observers": observed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        for name, observer in self._observers.items():
            observer.load_state_dict(state["observers"][name])
        if self.accelerator.is_main_process:
            self.meters.load_state_dict(state["meters"], self.args.device)

    def _sums(self) -> Tensor:
        sums = self.meters.sums(self.args.device)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.clone(), reduction="sum")
        return sums
