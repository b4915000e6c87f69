"""What passes by on the way into the model: our columns are taken out, and the inputs are kept for the loss that follows.

Shapes: B rows, T positions.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from components.errors import TrainingError
from components.objectives.model_head import causal_lm
from components.training.collator import SCORE_PREFIX, TEACHER_PREFIX
from components.training.columns import StepColumns, take_columns

KEPT = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class PassedInputs:
    """Of one forward pass: the model's own inputs (those of KEPT that were given), our columns, and whether it trains."""

    inputs: dict[str, Tensor]
    columns: StepColumns
    is_training: bool

    @property
    def for_layout(self) -> dict[str, Tensor]:
        """Padded rows are known by their mask; positions count only where there is none, for packed rows."""
        ids_BT = self.inputs["input_ids"]
        mask = self.inputs.get("attention_mask")
        if mask is not None and mask.dim() == 2:
            return {"input_ids": ids_BT, "attention_mask": mask}
        if "position_ids" in self.inputs:
            return {"input_ids": ids_BT, "position_ids": self.inputs["position_ids"].expand_as(ids_BT)}
        return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}


@final
class InputWatch:
    """A forward pre-hook of the causal LM inside whatever wraps it (DDP, peft). State: the newest pass, until it is taken."""

    def __init__(self) -> None:
        self._newest: PassedInputs | None = None
        self._handle: Any = None

    @property
    def is_attached(self) -> bool:
        return self._handle is not None

    def attach(self, model: nn.Module) -> None:
        """To this model alone: a watch attached before is taken off."""
        if self._handle is not None:
            self._handle.remove()
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self._handle = causal_lm(inner).register_forward_pre_hook(self._see, with_kwargs=True)

    def take(self) -> PassedInputs:
        """The inputs that the outputs at hand come from."""
        if self._newest is None:
            raise TrainingError("the loss does not see the model's inputs; call loss.attach(trainer.model) before training")
        newest, self._newest = self._newest, None
        if "input_ids" not in newest.inputs:
            raise TrainingError("the loss needs `input_ids` among the model's keyword arguments; inputs_embeds alone will not do")
        return newest

    def _see(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        _refuse_rounded(kwargs)
        columns = take_columns(kwargs)
        kept = {name: kwargs[name] for name in KEPT if kwargs.get(name) is not None}
        self._newest = PassedInputs(kept, columns, model.training)
        return args, kwargs


def _refuse_rounded(kwargs: dict[str, Any]) -> None:
    """FSDP2's mixed precision and DeepSpeed cast every floating input of the model: thresholds and teacher would be rounded."""
    exact = [name for name in kwargs if name.startswith(SCORE_PREFIX) or name == f"{TEACHER_PREFIX}label_logprob"]
    for name in exact:
        if kwargs[name].dtype in (torch.bfloat16, torch.float16):
            raise TrainingError(
                f"{name} reached the model as {kwargs[name].dtype}: something casts the model's inputs (FSDP2: set "
                "cast_forward_inputs=False). Do that, use the teacher online, or train by post_train, which is not affected"
            )
