"""transformers.Trainer with the token-level objective in place of its mean cross-entropy.

Shapes: B rows, T positions, N target tokens of the micro-batch, V vocabulary.

Losses are summed over target tokens and divided once, by the number of target tokens of the whole optimiser step over all
micro-batches and ranks (`num_items_in_batch`), so neither accumulation nor the number of processes changes the gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from components.data.batching import IGNORED_LABEL
from components.errors import CacheMismatchError, TrainingError
from components.objectives.presets import Objective
from components.objectives.sparse_target import TeacherTargets, label_nll
from components.objectives.token_loss import ObjectiveTerms, objective_terms, selection_mask, token_scores
from components.training.meters import StepMeters
from components.training.threshold import LaggedThreshold
from components.uncertainty.selection import random_scores

ALIGNMENT_TOLERANCE_NATS = {torch.float32: 0.01, torch.bfloat16: 0.5}


class ObjectiveTrainer(Trainer):
    """Adds `objective` and its threshold. `is_initial_student`: the model still equals the teacher, so step 0 proves alignment."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, objective: Objective, threshold: LaggedThreshold, is_initial_student: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective = objective
        self.threshold = threshold
        self.meters = StepMeters()
        self.model_accepts_loss_kwargs = True  # the Trainer counts the step's target tokens for us only when this is set
        self._must_prove_alignment = is_initial_student
        self._part = 0

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
        outputs = model(**inputs, use_cache=False)
        is_target_BT = labels_BT[:, 1:] != IGNORED_LABEL
        logits_NV = outputs.logits[:, :-1][is_target_BT].float()
        labels_N = labels_BT[:, 1:][is_target_BT]
        terms = self._terms(logits_NV, labels_N, teacher)
        self._refuse_non_finite(terms, inputs["input_ids"])
        self.meters.add(terms, self.threshold.value)
        loss = terms.loss_sum / num_items_in_batch
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _terms(self, logits_NV: Tensor, labels_N: Tensor, teacher: TeacherTargets | None) -> ObjectiveTerms:
        nll_N = label_nll(logits_NV, labels_N)
        if teacher is not None and self._must_prove_alignment:
            self._prove_alignment(nll_N.detach(), teacher)
        if self.objective.select == "all" or self.state.global_step < self.objective.warmup_steps:
            selected_N = torch.ones_like(labels_N, dtype=torch.bool)
        else:
            selected_N = self._select(logits_NV, nll_N, teacher)
        return objective_terms(self.objective, logits_NV, labels_N, teacher, selected_N, nll_N)

    def _select(self, logits_NV: Tensor, nll_N: Tensor, teacher: TeacherTargets | None) -> Tensor:
        if self.objective.select == "random":
            part = self._part * self.accelerator.num_processes + self.accelerator.process_index
            scores_N = random_scores(len(nll_N), self.args.seed, self.state.global_step, part).to(nll_N.device)
            self._part += 1
        else:
            scores_N = token_scores(self.objective, logits_NV, nll_N, teacher)
            self.threshold.observe(scores_N)
        return selection_mask(self.objective, scores_N, self.threshold.current(scores_N))

    def finish_step(self) -> None:
        """After the optimiser's step: one threshold for the next step from the scores of all micro-batches and ranks."""
        self._part = 0
        self._must_prove_alignment = False
        if self.objective.needs_threshold:
            scores_N = self.threshold.take_pending().to(self.args.device)
            self.threshold.advance(self._gather(scores_N))

    def _gather(self, scores_N: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return scores_N
        padded_N = self.accelerator.pad_across_processes(scores_N, pad_index=float("nan"))
        gathered_N = self.accelerator.gather(padded_N)
        return gathered_N[~gathered_N.isnan()]

    def _prove_alignment(self, nll_N: Tensor, teacher: TeacherTargets) -> None:
        """At step 0 the student is the teacher: its loss must be the cached one, token by token. One position of shift shows."""
        gap = float((nll_N + teacher.label_logprob_N).abs().max()) if len(nll_N) else 0.0
        precision = torch.bfloat16 if self.args.bf16 else torch.float32
        if gap > ALIGNMENT_TOLERANCE_NATS[precision]:
            raise CacheMismatchError(
                f"the base model's loss differs from the teacher cache by up to {gap:.3f} nats per token before the first step, "
                "so cache and batch are not aligned. Run: dvc repro -f -s cache_teacher"
            )

    def _refuse_non_finite(self, terms: ObjectiveTerms, input_ids_BT: Tensor) -> None:
        if torch.isfinite(terms.loss_sum):
            return
        raise TrainingError(
            f"the loss is {float(terms.loss_sum)} at step {self.state.global_step} (first row begins with tokens "
            f"{input_ids_BT[0, :8].tolist()}). Nothing was saved from this step. Lower training.learning_rate "
            "or training.max_grad_norm, or remove that row"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the plain nll, the objective's terms and the mask to every training log."""
        if "loss" in logs:
            logs.update(self.meters.take())
        super().log(logs, start_time)


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
