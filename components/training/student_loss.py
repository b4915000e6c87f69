"""The forward pass of one micro-batch: the student's hidden states, and the objective on them by the fused head.

Shapes: B rows, T positions, N predicted tokens, V vocabulary.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import ParamsError, TrainingError
from components.objectives.fused_head import FusedLoss
from components.objectives.model_head import FORM, TokenLossRequest, attach_token_loss, causal_lm, head_of, hidden_of
from components.objectives.objective import Objective
from components.objectives.row_loss import DenseTeacher
from components.objectives.sparse_target import TeacherTargets
from components.training.sharding import is_sharded
from components.training.token_layout import TokenLayout
from components.training.token_weigher import TokenWeigher


class StudentLoss:
    """Lets the student take `token_loss=`; keeps the online teacher (the student as it is now, frozen) where one is asked for.

    To be made before the weights are sharded, or by a Trainer that is given a model sharded by `shard_model`.
    `goes_through_logits`: why the student's head could not be fused, or None; the loss is the same, memory is not.
    """

    def __init__(self, objective: Objective, student: nn.Module) -> None:
        if is_sharded(student) and not hasattr(causal_lm(student), FORM):
            raise TrainingError(
                "the model was sharded before its loss head was attached, so its architecture cannot be probed any more. "
                "Use shard_model(model), or call attach_token_loss(model) before fully_shard"
            )
        self.objective = objective
        self._teacher = OnlineTeacher(student) if objective.distils and objective.teacher == "online" else None
        self.goes_through_logits = attach_token_loss(student)

    def __call__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        layout: TokenLayout,
        teacher: TeacherTargets | None,
        weigher: TokenWeigher,
    ) -> FusedLoss:
        """Terms of one micro-batch. `model` is the student, perhaps wrapped (DDP, FSDP2, peft)."""
        laws = teacher if self._teacher is None else self._teacher.laws(inputs, layout.predicts_BT)
        assert laws is not None or not self.objective.distils, "distillation needs the teacher's columns"
        request = token_loss_request(self.objective, layout, laws, weigher)
        terms: dict[str, Tensor] = model(**inputs, token_loss=request)
        return FusedLoss(**{"entropy_N": None, **terms})  # type: ignore[arg-type]


def token_loss_request(
    objective: Objective, layout: TokenLayout, teacher: TeacherTargets | DenseTeacher | None, weigher: TokenWeigher
) -> TokenLossRequest:
    """One micro-batch's part of the objective, in the words of the head."""
    return TokenLossRequest(
        layout.predicts_BT,
        layout.labels_N,
        weigher,
        teacher=teacher if objective.distils else None,
        temperature=objective.temperature,
        divergence=objective.divergence,
        entropy=objective.entropy,
        survey=weigher.see_all if weigher.needs_all_scores else None,
    )


class OnlineTeacher:
    """The base beside the student: a frozen model given or copied, or with LoRA the student itself with its adapters off.

    Of a sharded student there is neither: each rank's copy must be made while the weights are whole, and is whole itself.
    """

    def __init__(self, student: nn.Module, frozen: nn.Module | None = None) -> None:
        if frozen is None and is_sharded(student):
            raise ParamsError(
                "teacher: online cannot copy a model that is sharded already. Make StudentLoss(objective, model) before "
                "shard_model(model) and give it to the trainer, or use teacher: cache"
            )
        self._has_adapter = frozen is None and hasattr(student, "disable_adapter")
        self._model = student if self._has_adapter else (frozen or copy.deepcopy(student)).eval().requires_grad_(False)

    @torch.no_grad()
    def laws(self, inputs: dict[str, Any], predicts_BT: Tensor) -> DenseTeacher:
        """The teacher's full laws of the predicted tokens; without dropout, without gradient."""
        if is_sharded(self._model):  # a student with LoRA: its base is called past the hooks that gather its weights
            raise ParamsError("teacher: online cannot read the base of a sharded model with an adapter; use teacher: cache")
        if not self._has_adapter:
            self._model.to(inputs["input_ids"].device)  # accelerate's FSDP moves the student alone
        head = head_of(self._model)
        if isinstance(head, str):
            raise ParamsError(f"teacher: online cannot use this model, because {head}; use teacher: cache")
        was_training = self._model.training
        with self._adapter_off():
            self._model.eval()
            hidden_NH = hidden_of(self._model, inputs, predicts_BT)
            self._model.train(was_training)
        return DenseTeacher(hidden_NH, head)

    def _adapter_off(self) -> AbstractContextManager[Any]:
        return self._model.disable_adapter() if self._has_adapter else nullcontext()  # type: ignore[operator]


def predicted_logits(model: nn.Module, inputs: dict[str, Any], predicts_BT: Tensor) -> Tensor:
    """`logits_NV` (fp32) of the positions that predict something, row by row."""
    logits_BTV: Tensor = model(**inputs, use_cache=False).logits
    return logits_BTV[predicts_BT].float()
