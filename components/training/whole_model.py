"""What a training leaves: one whole model of the base's architecture, however it was trained."""

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.tensor import DTensor

from components.objectives.model_head import causal_lm
from components.params import LoraParams
from components.training.lora import add_adapter, merge_adapter
from components.training.sharded_state import whole_weights
from components.training.sharding import reshard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from components.training.trainer import ObjectiveTrainer


def whole_model(trainer: "ObjectiveTrainer", student: Any, lora: LoraParams) -> "PreTrainedModel":
    """The student with its adapter merged in. Of a sharded one the first rank gets a whole copy, on the CPU, and every other
    rank its own slices back; every rank must call this."""
    reshard(student)
    is_cut = trainer.is_deepspeed_enabled or any(isinstance(parameter, DTensor) for parameter in student.parameters())
    if not is_cut:
        return merge_adapter(student) if lora.enabled else student
    keeps = trainer.is_world_process_zero()
    weights = (
        trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if trainer.is_deepspeed_enabled
        else whole_weights(student, keeps=keeps)
    )
    return plain_model(student, lora, weights) if keeps else student


def plain_model(student: nn.Module, lora: LoraParams, weights: dict[str, Any]) -> "PreTrainedModel":
    """A model like the student was before it was cut, with these weights."""
    from transformers import AutoModelForCausalLM

    lm = causal_lm(student)
    plain: Any = AutoModelForCausalLM.from_config(lm.config, dtype=lm.dtype)
    plain.generation_config = lm.generation_config
    plain = add_adapter(plain, lora) if lora.enabled else plain
    plain.load_state_dict(weights)
    return merge_adapter(plain) if lora.enabled else plain
