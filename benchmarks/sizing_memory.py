"""Bytes on one GPU while a cell of the grid trains, part by part, as Ballast trains today.

Weights are loaded in fp32 and products run in bf16 under autocast (one GPU, DDP, FSDP2), or weights are bf16 (ZeRO-3). Both keep
16 bytes of state per trained parameter (ZeRO, Rajbhandari et al. 2020: weights, gradients, fp32 master weights, Adam's moments);
FSDP2 and ZeRO-3 divide them by the number of GPUs.

Letters as in sizing_models; a token here is one of the micro-batch, padding included.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch

from benchmarks.sizing_models import LINEARS, Architecture
from components.objectives.head import BLOCK_BYTES, rows_per_chunk

Engine = Literal["single", "ddp", "fsdp2", "fsdp2_bf16", "zero3"]
"""fsdp2: components.training.sharding under autocast; fsdp2_bf16: with a MixedPrecisionPolicy, which Ballast does not set."""
GPU = torch.device("cuda")  # only named: no GPU is asked for anything
PLAIN_COPIES = 6.0
"""[N, V] fp32 tensors that the plain cross-entropy and KL hold at once (sizing_checks; 7.0 by the process's high-water mark)."""
RESERVED_BYTES, FRAGMENTED = 1.5e9, 0.10
"""CUDA context with NCCL's buffers, and what the allocator loses: assumed, never measured here."""
ENTRY_BYTES = 16
"""Of one cached entry in the batch: id in int64, logprob in fp32, a mask, padding."""


@dataclass(frozen=True)
class Setup:
    """One cell of the grid on `num_gpus` GPUs. `attended_tokens`: the longest row, or the whole micro-batch when packed."""

    model: Architecture
    engine: Engine = "single"
    num_gpus: int = 1
    is_lora: bool = False
    rank: int = 8
    precision: Literal["bf16", "fp32"] = "bf16"
    micro_tokens: int = 8192
    micro_batches: int = 1
    attended_tokens: int = 1024
    predicted_share: float = 1.0
    is_checkpointed: bool = False
    has_online_teacher: bool = False

    @property
    def trained(self) -> int:
        return self.model.adapter_parameters(self.rank) if self.is_lora else self.model.parameters

    @property
    def frozen(self) -> int:
        return self.model.parameters if self.is_lora else 0

    @property
    def shards(self) -> int:
        return self.num_gpus if self.engine in ("fsdp2", "fsdp2_bf16", "zero3") else 1

    @property
    def gathered_bytes(self) -> int:
        """Of a weight that is made whole for a pass: fp32 by our FSDP2, else bf16."""
        return 4 if self.engine == "fsdp2" else 2

    @property
    def predicted_tokens(self) -> int:
        return round(self.micro_tokens * self.predicted_share)


@dataclass(frozen=True)
class GpuMemory:
    """Bytes at the fullest moment, the end of the forward pass; `reserve` is what is lost to context and fragmentation."""

    weights: float
    gradients: float
    optimiser: float
    copies: float
    head: float
    activations: float
    teacher: float
    reserve: float

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))


def gpu_memory(setup: Setup) -> GpuMemory:
    parts = (
        *state_bytes(setup),
        copies_bytes(setup),
        head_bytes(setup),
        activation_bytes(setup),
        teacher_bytes(setup),
    )
    return GpuMemory(*parts, reserve=RESERVED_BYTES + FRAGMENTED * sum(parts))


def state_bytes(setup: Setup) -> tuple[float, float, float]:
    """Weights, gradients, optimiser. Frozen weights cost 4 bytes each (Ballast loads the base in fp32), or 2 gathered by ZeRO-3.

    FSDP2 sums the gradients of all micro-batches but the last unsharded, in fp32 (ShardedTrainer sends them once a step).
    """
    trained, frozen, shards = setup.trained, setup.frozen, setup.shards
    if setup.engine == "zero3":
        return (6 * trained + 2 * frozen) / shards, 2 * trained / shards, 8 * trained / shards
    unsharded = 4 * trained if setup.engine in ("fsdp2", "fsdp2_bf16") and setup.micro_batches > 1 else 0
    return 4 * (trained + frozen) / shards, 4 * trained / shards + unsharded, 8 * trained / shards


def copies_bytes(setup: Setup) -> float:
    """Second copies of weights or gradients.

    Autocast: a bf16 copy of every linear stays with the graph until the backward pass, under our FSDP2 too: whole on every rank.
    DDP: its buckets hold all gradients once more (accelerate leaves gradient_as_bucket_view off). FSDP2, ZeRO-3: two layers and
    the root's unit made whole, and the unsharded fp32 gradient of one layer and the root.
    """
    model, has_autocast = setup.model, setup.precision == "bf16" and setup.engine not in ("fsdp2_bf16", "zero3")
    total = 2.0 * model.layers * model.layer_linears if has_autocast else 0.0
    if setup.engine == "ddp":
        total += 4 * setup.trained
    if setup.shards > 1:
        total += setup.gathered_bytes * (2 * model.layer_parameters + model.root_parameters)
        total += 0 if setup.is_lora else 4 * (model.layer_parameters + model.root_parameters)
    return total


def head_bytes(setup: Setup) -> float:
    """The fused head: one chunk of logits; a block of them in fp32 where they are not, and one more for a softcap's slope; the
    bf16 copy of the head; the gradients made in the forward pass ([N, H], and [V, H] in fp32 unless the head is frozen)."""
    model, itemsize = setup.model, 2 if setup.precision == "bf16" else 4
    columns, tokens = model.vocabulary, setup.predicted_tokens
    chunk = min(tokens, rows_per_chunk(columns, itemsize, GPU, None)) * columns * itemsize
    block = min(tokens * columns * 4, BLOCK_BYTES["cuda"])
    copy = 2 * model.head_parameters if setup.precision == "bf16" else 0
    stored = 4 * tokens * model.hidden + (0 if setup.is_lora else 4 * model.head_parameters)
    return chunk + block * ((itemsize < 4) + model.has_softcap) + copy + stored


def plain_head_bytes(setup: Setup) -> float:
    """What the loss would hold without the fused head: all logits, several times."""
    return PLAIN_COPIES * 4 * setup.predicted_tokens * setup.model.vocabulary


def activation_bytes(setup: Setup) -> float:
    """What the layers keep for the backward pass. Checkpointed: the input of every layer, and one layer whole (Korthikanti et al.
    2022); Ballast has no switch for it today. Last: the embedding's residual, the last norm and the predicted hidden states."""
    model, tokens = setup.model, setup.micro_tokens
    layer = layer_activation_bytes(setup)
    layers = model.layers * 4 * model.hidden + layer if setup.is_checkpointed else model.layers * layer
    return tokens * (layers + (8 if setup.is_lora else 12) * model.hidden) + 4 * setup.predicted_tokens * model.hidden


def layer_activation_bytes(setup: Setup) -> float:
    """Of one token in one layer: the count of Korthikanti et al. 2022 (34 H + 5 a T for a GPT layer) done anew for what
    transformers 5.23's LLaMA and Gemma 2 save, e bytes a number (2 bf16, 4 fp32); norms and residual stay in fp32 under autocast.

    Each norm (LLaMA 2, Gemma 2 4): its input 4H, and what it scales 4H unless its weight is frozen. Inputs of the linears: 5
    casts of e H in bf16 (each linear makes its own), 2 of 4H in fp32. Queries, keys, values and output: e A each, for a mask
    makes transformers repeat keys and values. MLP: gate, its activation, up, their product: 4 e F. Eager attention: scores (e),
    softmax (4) and its cast (e in bf16) for every head and position. LoRA: the inputs as before, and e * rank for each linear.
    """
    model, e = setup.model, 2 if setup.precision == "bf16" else 4
    norms = model.norms_per_layer * ((4 if setup.is_lora else 8) * model.hidden + 4)
    inputs = (5 * e if e == 2 else 2 * e) * model.hidden
    attention = 4 * e * model.query_width  # a padded or packed micro-batch comes with a mask
    scores = 4 * model.heads
    if model.attention == "eager":
        scores = model.heads * setup.attended_tokens * (e + 4 + (e if e == 2 else 0))
    adapters = LINEARS * e * setup.rank if setup.is_lora else 0
    return norms + inputs + attention + scores + 4 * e * model.mlp + adapters


def teacher_bytes(setup: Setup) -> float:
    """Cached: the batch's entries. Online: a second chunk of logits, and a whole frozen fp32 base on every GPU (OnlineTeacher
    copies it, unsharded) unless LoRA lets the student be its own teacher."""
    if not setup.has_online_teacher:
        return setup.predicted_tokens * 64 * ENTRY_BYTES
    model = setup.model
    chunk = min(setup.predicted_tokens, rows_per_chunk(model.vocabulary, 2, GPU, None)) * model.vocabulary * 2
    hidden = 4 * setup.predicted_tokens * model.hidden
    return chunk + hidden + (0 if setup.is_lora else 4 * model.parameters)
