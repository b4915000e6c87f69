"""The forward pass of one micro-batch: the student's hidden states, and the objective on them.

Shapes: B rows, T positions, N predicted tokens, V vocabulary.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from components.objectives.objective import Objective
from components.objectives.sparse_target import TeacherTargets
from components.objectives.token_loss import TokenTerms, distillation_loss, entropy_of, weighted_sum
from components.training.token_layout import TokenLayout
from components.training.token_weigher import TokenWeigher


class StudentLoss:
    """Computes the terms of a micro-batch; keeps the online teacher (the student as it is now, frozen) where one is asked for."""

    def __init__(self, objective: Objective, student: nn.Module) -> None:
        self.objective = objective
        self._teacher = OnlineTeacher(student) if objective.distils and objective.teacher == "online" else None

    def __call__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        layout: TokenLayout,
        teacher: TeacherTargets | None,
        weigher: TokenWeigher,
    ) -> TokenTerms:
        """The plain form: logits of the predicted tokens, [N, V], are held."""
        logits_NV = predicted_logits(model, inputs, layout.predicts_BT)
        nll_N = torch.nn.functional.cross_entropy(logits_NV, layout.labels_N, reduction="none")
        entropy_N = entropy_of(self.objective, logits_NV.detach())
        if weigher.needs_all_scores:
            weigher.see_all(nll_N.detach(), entropy_N)
        weights = weigher.weigh(nll_N.detach(), entropy_N, slice(0, len(nll_N)))
        divergence_N = torch.zeros_like(nll_N)
        if self.objective.distils:
            laws = teacher if self._teacher is None else self._teacher.logits(inputs, layout.predicts_BT)
            assert laws is not None, "distillation needs the teacher's columns"
            divergence_N = distillation_loss(self.objective, logits_NV, laws)
        return TokenTerms(
            loss_sum=weighted_sum(weights, nll_N, divergence_N),
            nll_N=nll_N.detach(),
            divergence_N=divergence_N.detach(),
            entropy_N=entropy_N,
            mle_weight_N=weights.mle_N,
            distil_weight_N=weights.distil_N,
        )


class OnlineTeacher:
    """The base beside the student: a frozen copy, or with LoRA the student itself with its adapters off."""

    def __init__(self, student: nn.Module) -> None:
        self._has_adapter = hasattr(student, "disable_adapter")
        self._model = student if self._has_adapter else copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any], predicts_BT: Tensor) -> Tensor:
        """Logits of the predicted tokens, [N, V]; without dropout, without gradient."""
        was_training = self._model.training
        with self._adapter_off():
            self._model.eval()
            logits_NV = predicted_logits(self._model, inputs, predicts_BT)
            self._model.train(was_training)
        return logits_NV

    def _adapter_off(self) -> AbstractContextManager[Any]:
        return self._model.disable_adapter() if self._has_adapter else nullcontext()  # type: ignore[operator]


def predicted_logits(model: nn.Module, inputs: dict[str, Any], predicts_BT: Tensor) -> Tensor:
    """`logits_NV` (fp32) of the positions that predict something, row by row."""
    logits_BTV: Tensor = model(**inputs, use_cache=False).logits
    return logits_BTV[predicts_BT].float()
