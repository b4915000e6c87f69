"""Whole weights and optimiser states of a sharded model, in the very form in which an unsharded run writes them.

Every function here is collective: all ranks must call it, in the same order. What is gathered goes to the CPU, one tensor at a
time, and only the rank that writes keeps it.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from components.errors import TrainingError


def whole_weights(model: nn.Module, *, keeps: bool) -> dict[str, Tensor]:
    """The model's state dict with full tensors; empty on ranks that do not keep it."""
    return {name: value for name, shard in model.state_dict().items() if (value := whole(shard, keeps)) is not None}


def whole_optimizer_state(optimizer: torch.optim.Optimizer, *, keeps: bool) -> dict[str, Any]:
    """The optimiser's state dict with full tensors; without its states on ranks that do not keep it."""
    found = optimizer.state_dict()
    states = {
        number: {name: whole(value, keeps) for name, value in state.items()}  # several passes over the ranks, in one order
        for number, state in found["state"].items()
    }
    return {**found, "state": states if keeps else {}}


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read a checkpoint's safetensors (of the model, or of its adapter) into the shards of this rank."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise TrainingError(f"{folder} holds no *.safetensors; remove that checkpoint and run the stage again")
    found: dict[str, Tensor] = {}
    for file in files:
        found |= load_file(file)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        any_shard = next(parameter for parameter in model.parameters() if isinstance(parameter, DTensor))
        set_peft_model_state_dict(model, {name: _spread(value, any_shard) for name, value in found.items()})
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = model.load_state_dict(
        {name: split_like(value, parameters.get(name)) for name, value in found.items()}, strict=False
    ).unexpected_keys
    if unknown:
        raise TrainingError(f"{folder} holds weights that the model does not have: {', '.join(unknown[:5])}")


def load_optimizer_state(optimizer: torch.optim.Optimizer, found: dict[str, Any]) -> None:
    """Give the optimiser a state dict of full tensors, each rank its slices."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        number: {name: split_like(value, parameters[number]) for name, value in state.items()}
        for number, state in found["state"].items()
    }
    optimizer.load_state_dict({**found, "state": states})


def whole(value: Any, keeps: bool = True) -> Any:
    """The full tensor of a shard, on the CPU; anything else as it is. None where it is not kept."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if not keeps:
        return None
    return value.detach().cpu() if isinstance(value, Tensor) else value


def split_like(value: Any, parameter: Tensor | None) -> Any:
    """This rank's slice of a full tensor where it has the parameter's shape and that is sharded; else the value itself."""
    is_alike = isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape
    return _spread(value, parameter) if is_alike and isinstance(parameter, DTensor) else value


def _spread(value: Tensor, like: DTensor) -> DTensor:
    """Every rank has read the same file, so nothing is sent."""
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
