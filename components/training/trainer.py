"""transformers.Trainer with the token-level objective in place of its mean cross-entropy.

Shapes: B rows, T positions, N target tokens of the micro-batch, V vocabulary.

Losses are summed over target tokens and divided once, by the number of target tokens of the whole optimiser step over all
micro-batches and ranks (`num_items_in_batch`), so neither accumulation nor the number of processes changes the gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from components.data.batching import IGNORED_LABEL
from components.errors import TrainingError
from components.objectives.presets import Objective
from components.objectives.sparse_target import TeacherTargets, label_nll
from components.objectives.token_loss import ObjectiveTerms, objective_terms, selection_mask, token_scores
from components.training.alignment import target_logits
from components.training.meters import StepMeters
from components.training.row_order import RowOrder
from components.training.threshold import LaggedThreshold
from components.uncertainty.selection import random_scores


class ObjectiveTrainer(Trainer):
    """Adds `objective` and its threshold."""

    loss_is_scaled_for_ga = True
    objective: Objective

    def __init__(self, *, objective: Objective, threshold: LaggedThreshold, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective = objective
        self.threshold = threshold
        self.meters = StepMeters()
        self.num_rows = len(self.train_dataset)  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = True  # the Trainer counts the step's target tokens for us only when this is set
        self._part = 0

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
        """Sum of the objective over this micro-batch's targets / target tokens of the step (x ranks: DDP averages)."""
        assert num_items_in_batch is not None, "the Trainer did not count the step's target tokens"
        teacher = take_teacher_columns(inputs)
        labels_BT = inputs.pop("labels")
        logits_NV, labels_N, outputs = target_logits(model, inputs, labels_BT)
        targets_B = (labels_BT[:, 1:] != IGNORED_LABEL).sum(1)
        terms = self._terms(logits_NV, labels_N, targets_B, teacher)
        self._refuse_non_finite(terms, inputs, targets_B)
        self.meters.add(terms, self.threshold.value)
        self._part += 1
        loss = terms.loss_sum / torch.as_tensor(num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _terms(self, logits_NV: Tensor, labels_N: Tensor, targets_B: Tensor, teacher: TeacherTargets | None) -> ObjectiveTerms:
        nll_N = label_nll(logits_NV, labels_N)
        selected_N = torch.ones_like(labels_N, dtype=torch.bool)
        if self.objective.select != "all":
            scores_N = self._scores(logits_NV, nll_N, targets_B, teacher)
            self.threshold.observe(scores_N)
            if self.state.global_step >= self.objective.warmup_steps:
                selected_N = selection_mask(self.objective, scores_N, self.threshold.current(scores_N))
        return objective_terms(self.objective, logits_NV, labels_N, teacher, selected_N, nll_N)

    def _scores(self, logits_NV: Tensor, nll_N: Tensor, targets_B: Tensor, teacher: TeacherTargets | None) -> Tensor:
        if self.objective.select != "random":
            return token_scores(self.objective, logits_NV, nll_N, teacher)
        part = self._part * self.accelerator.num_processes + self.accelerator.process_index
        first = part * len(targets_B)  # the row's number within the step, whatever the micro-batches and ranks
        counts = targets_B.tolist()
        rows = [random_scores(count, self.args.seed, self.state.global_step, first + row) for row, count in enumerate(counts)]
        return torch.cat(rows).to(nll_N.device)

    def finish_step(self) -> None:
        """After the optimiser's step: one threshold for the next step from the scores of all micro-batches and ranks."""
        self._part = 0
        self.state.epoch = self.state.global_step * self.rows_per_step / self.num_rows  # the Trainer takes all for one pass
        if self.threshold.is_lagged:
            scores_N = self.threshold.take_pending().to(self.args.device)
            self.threshold.advance(self._gather(scores_N))

    def _gather(self, scores_N: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return scores_N
        padded_N = self.accelerator.pad_across_processes(scores_N, pad_index=float("nan"))
        gathered_N: Tensor = self.accelerator.gather(padded_N)
        return gathered_N[~gathered_N.isnan()]

    def _refuse_non_finite(self, terms: ObjectiveTerms, inputs: dict[str, Tensor], targets_B: Tensor) -> None:
        if torch.isfinite(terms.loss_sum):
            return
        token = int((~torch.isfinite(terms.nll_N + terms.kl_N)).int().argmax())
        row = int((targets_B.cumsum(0) > token).int().argmax())
        tokens = inputs["input_ids"][row, : min(8, int(inputs["attention_mask"][row].sum()))].tolist()
        raise TrainingError(
            f"the loss is {float(terms.loss_sum.detach())} at step {self.state.global_step} (first in the row that begins with "
            f"tokens {tokens}). Nothing was saved from this step. Lower training.learning_rate "
            "or training.max_grad_norm, or remove that row"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Also refuses a gradient that is not finite: this step would make every weight NaN, and its checkpoint with them."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(
                f"the gradient's norm is {float(norm)} at step {self.state.global_step} though the loss is finite. Nothing was "
                "saved from this step. Lower training.learning_rate, or set training.precision: fp32"
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds nll, the objective's terms and the mask to every training log; `loss` becomes a mean per target token too."""
        if "loss" in logs:
            logs.update(self.meters.take(self._sums()))
        super().log(logs, start_time)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep beside the Trainer's own; every rank must call this."""
        return {"threshold": self.threshold.state_dict(), "meters": self.meters.state_dict(self._sums())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        if self.accelerator.is_main_process:
            self.meters.load_state_dict(state["meters"], self.args.device)

    def _sums(self) -> Tensor:
        sums = self.meters.sums(self.args.device)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.clone(), reduction="sum")
        return sums


def take_teacher_columns(inputs: dict[str, Any]) -> TeacherTargets | None:
    """Pop the teacher's columns out of a batch: the model must not see them."""
    if "teacher_entry_ids" not in inputs:
        return None
    return TeacherTargets(
        entry_ids_NK=inputs.pop("teacher_entry_ids").long(),
        entry_logprobs_NK=inputs.pop("teacher_entry_logprobs").float(),
        tail_logprob_N=inputs.pop("teacher_tail_logprob").float(),
        label_logprob_N=inputs.pop("teacher_label_logprob").float(),
    )
