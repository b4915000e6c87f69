"""FSDP2 by torch's own `fully_shard`: each rank keeps one slice of every parameter, its gradient and its optimiser state.

Two ways to shard, never both in one run:

* `accelerate launch` with an FSDP2 configuration, on GPUs: give ObjectiveTrainer the plain model; accelerate shards it when the
  training starts, and writes the checkpoints in a form of its own. On CPU accelerate ignores its FSDP plugin without a word.
* `shard_model(model)` before the Trainer is made, under torchrun on any device (gloo on CPU): ObjectiveTrainer sees that the
  model is sharded, wraps it in nothing, and its checkpoints are those of an unsharded run, good for any number of ranks.

What is sharded: every decoder layer is a unit of its own, whose weights are whole only during its own forward and backward pass.
What is left (embedding, final norm, head) is the root's unit, whole from the start of the forward pass to the end of the
backward pass. Tied embeddings are one parameter of that one unit; in two units they would come apart.
"""

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from components.errors import TrainingError
from components.objectives.model_head import attach_token_loss, causal_lm


def is_sharded(model: nn.Module) -> bool:
    """True for a model whose root went through `fully_shard`."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Give back what a forward pass without a backward pass has left whole: the root's own unit. Nothing without shards.

    What is read or written of such a parameter would be the passing whole copy, not the slice that is trained.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_model(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """Shard `model` (a causal LM, or one with a LoRA adapter) in place over the ranks of `mesh`, by default over all of them.

    Every rank must hold the same weights, on its own device. The loss head is attached first, while the weights are whole: its
    probe of the architecture needs them.
    """
    attach_token_loss(model)
    mesh = mesh_of_all_ranks(next(model.parameters()).device) if mesh is None else mesh
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks that transformers says must not be split."""
    lm: Any = causal_lm(model)
    names = set(lm._no_split_modules or ())
    found = [module for module in lm.modules() if type(module).__name__ in names]
    if not found:
        raise TrainingError(
            f"{type(lm).__name__} names none of its layers in _no_split_modules, so shard_model cannot tell what to shard. "
            "Call torch.distributed.fsdp.fully_shard on its layers and then on the model, after attach_token_loss(model)"
        )
    return found


def mesh_of_all_ranks(device: torch.device) -> DeviceMesh:
    """A mesh of one dimension over all ranks; starts the process group that the Trainer will use, too."""
    from accelerate import PartialState

    PartialState(cpu=device.type == "cpu")
    if not distributed.is_initialized():
        raise TrainingError(
            "shard_model needs several processes. Start them with: torchrun --standalone --nproc_per_node <number of GPUs> ... "
            "(on CPU with ACCELERATE_USE_CPU=true)"
        )
    return init_device_mesh(device.type, (distributed.get_world_size(),))
