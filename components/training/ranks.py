"""The processes that share one training (ranks): who this one is, where it works, and the proof that all of them are there.

A rank that finds itself alone trains the whole model by itself, writes where the others write, and looks right: accelerate starts
one process where its CPU switch meets several, and leaves out its FSDP on CPU, both without a word. So the number of ranks
and the sharding are looked at, never taken for granted.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from components.errors import ParamsError, TrainingError
from components.models import select_device
from components.run_params import LaunchParams
from components.training.sharding import reshard

if TYPE_CHECKING:
    from components.params import ComputeParams

START = "Start them with: python -m flows.post_train, or each of them by torchrun (docs/many-gpus.md)"


class SilentRecorder:
    """Takes what a tracker takes and keeps nothing: of several ranks the first one records."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def refer_to_model(self) -> None:
        pass


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a training. Alone it is the first of one, and nothing here does anything."""

    device: torch.device
    number: int = 0
    count: int = 1
    shards: bool = False
    """The model is to be cut over the ranks by shard_model."""

    @property
    def is_first(self) -> bool:
        """Writes what the training leaves; every other rank writes only its part of a checkpoint."""
        return self.number == 0

    def recording(self, open_recorder: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
        """The tracker's run on the first rank, silence on the others."""
        return open_recorder() if self.is_first else nullcontext(SilentRecorder())

    def part(self) -> None:
        """Wait until no rank needs another any more: what follows, one may do alone."""
        if self.count > 1:
            distributed.barrier()
            distributed.destroy_process_group()

    def counted(self, amounts: dict[str, int]) -> dict[str, int]:
        """What a training cost, and on how many processes where it was more than one."""
        return amounts if self.count == 1 else {**amounts, "num_processes": self.count}


def join_ranks(launch: LaunchParams, compute: "ComputeParams", variables: Mapping[str, str] = os.environ) -> Ranks:
    """Find the other ranks (as torchrun, accelerate launch or Kubernetes names them) and a device of one's own."""
    number, count, local = (int(variables.get(name, default)) for name, default in _PLACE)
    refuse_other_number(launch, count)
    device = select_device(compute, local if count > 1 else None)
    if count == 1:
        return Ranks(device)
    refuse_other_engine(launch, device, variables)
    _refuse_shared_gpu(device, int(variables.get("LOCAL_WORLD_SIZE", "1")))
    _start_group(device, count)
    is_accelerates = variables.get("ACCELERATE_USE_FSDP", "false") == "true"
    return Ranks(device, number, count, shards=launch.engine == "fsdp2" and not is_accelerates)


_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def refuse_other_number(launch: LaunchParams, count: int) -> None:
    """As many as params.yaml asks for, no fewer and no more: a step is shared by them."""
    if count == launch.num_processes:
        return
    if launch.engine == "single":
        raise ParamsError(
            f"{count} processes were started for one training, but params.yaml says launch.engine: single. Set engine: ddp or "
            f"fsdp2 and num_processes: {count}"
        )
    raise TrainingError(
        f"params.yaml asks for {launch.num_processes} processes (launch.num_processes), {count} came up: each would train by "
        f"itself, or on other steps. {START}"
    )


def refuse_other_engine(launch: LaunchParams, device: torch.device, variables: Mapping[str, str]) -> None:
    """What accelerate launch has switched on must be the engine of params.yaml, and must work here."""
    found = {name: variables.get(f"ACCELERATE_USE_{name}", "false") == "true" for name in ("FSDP", "DEEPSPEED")}
    if found["FSDP"] and device.type == "cpu":
        raise TrainingError(
            "accelerate leaves out its FSDP on CPU without a word, and every rank would hold the whole model. Set launch.config: "
            "null, then engine fsdp2 shards by torch itself, on CPU too"
        )
    allowed = {"fsdp2": ("FSDP",), "deepspeed_zero3": ("DEEPSPEED",)}.get(launch.engine, ())
    for name, is_on in found.items():
        if is_on and name not in allowed:
            raise ParamsError(f"accelerate's configuration switches {name} on, params.yaml says launch.engine: {launch.engine}")
    if launch.engine == "deepspeed_zero3" and not found["DEEPSPEED"]:
        raise TrainingError(
            "launch.engine is deepspeed_zero3, but these ranks were started without a DeepSpeed configuration. Start them with: "
            "accelerate launch --config_file infra/accelerate/deepspeed_zero3.yaml --num_processes <ranks> -m flows.post_train"
        )


def _refuse_shared_gpu(device: torch.device, num_local: int) -> None:
    """Two ranks on one GPU would halve its memory, and NCCL refuses them after minutes."""
    if device.type == "cuda" and num_local > torch.cuda.device_count():
        raise ParamsError(
            f"{num_local} processes on a machine with {torch.cuda.device_count()} GPUs. In params.yaml set launch.num_processes: "
            f"{torch.cuda.device_count()}, or start torchrun on several machines (docs/many-gpus.md)"
        )


def _start_group(device: torch.device, count: int) -> None:
    from accelerate import PartialState

    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it each rank believes that it is alone
    PartialState(cpu=device.type == "cpu")
    found = distributed.get_world_size() if distributed.is_initialized() else 1
    if found != count:
        raise TrainingError(f"{count} processes were started, and this one sees {found} of them. {START}")


def refuse_whole_copies(trainer: Any, *, is_sharded: bool) -> None:
    """Once the Trainer has wrapped its model: it shares steps with every rank, and each weight is cut where it should be."""
    count = distributed.get_world_size() if distributed.is_initialized() else 1
    if trainer.accelerator.num_processes != count:
        raise TrainingError(f"{count} ranks are here, and the Trainer trains with {trainer.accelerator.num_processes}. {START}")
    if not is_sharded:
        return
    reshard(trainer.model)
    whole = [name for name, parameter in trainer.model.named_parameters() if not isinstance(parameter, DTensor)]
    if whole:
        raise TrainingError(f"engine fsdp2 was to shard every weight, and {len(whole)} are whole (for example {min(whole)})")
    stepped = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert all(isinstance(parameter, DTensor) for parameter in stepped), "the optimiser steps passing copies of the weights"


def from_first(value: float, model: nn.Module) -> float:
    """The first rank's number on every rank: a decision taken on it is one, however the ranks' sums were rounded."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    sent = torch.tensor(value, dtype=torch.float64, device=next(model.parameters()).device)
    distributed.broadcast(sent, src=0)
    return float(sent)


def wait_for_all() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def refuse_different(what: str, value: str) -> None:
    """All ranks must see the same files."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    if len(set(found)) > 1:
        raise TrainingError(
            f"the ranks see different files ({what}: {', '.join(map(str, found))}). .work and artifacts must lie on one disk "
            "that every machine sees"
        )
