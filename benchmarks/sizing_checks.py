"""What the formulas of the sizing say beside what torch, transformers and our own code really take, on a CPU.

    python -m benchmarks.sizing_checks

Counts of bytes, not seconds: they are the same on every machine. What they cannot show is what CUDA's allocator, kernels and
NCCL add; no GPU has run Ballast.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.sizing_memory import PLAIN_COPIES, Setup, activation_bytes, copies_bytes, state_bytes
from benchmarks.sizing_models import MODELS, Architecture
from benchmarks.sizing_work import Data, cache_size
from benchmarks.training_step import Row, draw_rows
from components.objectives.model_head import TokenLossRequest, attach_token_loss
from components.objectives.row_loss import TokenChunk
from components.params import LoraParams
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.shard_plan import CaptureSettings
from components.teacher_cache.writer import Teacher, write_cache
from components.training.sharding import shard_model

SMALL = {
    "LLaMA": Architecture("small LLaMA", 128, 352, 3, 4, 2, 32, 500, is_tied=True),
    "Gemma 2": Architecture(
        "small Gemma 2", 128, 352, 3, 4, 2, 48, 500, is_tied=True, norms_per_layer=4, attention="eager", has_softcap=True
    ),
}
ROWS, LENGTH = 6, 90


@dataclass(frozen=True)
class Check:
    """One quantity by formula and as it is, in bytes (parameters: a count)."""

    name: str
    formula: float
    real: float

    @property
    def ratio(self) -> float:
        return self.formula / self.real


def build(model: Architecture) -> Any:
    """The transformers model of this architecture, with random weights on the current default device."""
    sizes: dict[str, Any] = {
        "vocab_size": model.vocabulary,
        "hidden_size": model.hidden,
        "intermediate_size": model.mlp,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_heads,
        "head_dim": model.head_width,
        "tie_word_embeddings": model.is_tied,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
    }
    return Gemma2ForCausalLM(Gemma2Config(**sizes)) if model.has_softcap else LlamaForCausalLM(LlamaConfig(**sizes))


def check_parameters(model: Architecture) -> Check:
    with torch.device("meta"):
        real = sum(parameter.numel() for parameter in build(model).parameters())
    return Check(f"parameters, {model.name}", model.parameters, real)


def check_state(model: Architecture) -> Check:
    """Weights, gradients and Adam's moments after one real step in fp32."""
    lm = build(model)
    optimizer = torch.optim.AdamW(lm.parameters())
    ids_BT = torch.arange(1, 9)[None]
    lm(input_ids=ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    tensors = [*lm.parameters(), *(weight.grad for weight in lm.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return Check(f"weights, gradients, Adam, {model.name}", sum(state_bytes(Setup(model))), sum(map(_bytes_of, tensors)))


def check_saved(model: Architecture, setup: Setup) -> list[Check]:
    """What the graph keeps of one forward pass with the fused head: activations, and autocast's copies of the weights."""
    lm, rank = build(model).train(), setup.rank
    if setup.is_lora:
        from components.training.lora import add_adapter

        lm = add_adapter(lm, LoraParams(enabled=True, rank=rank))
    attach_token_loss(lm)
    shapes = {tuple(weight.shape) for name, weight in lm.named_parameters() if "layers" in name and weight.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    is_copy = lambda kept: kept.dim() == 2 and tuple(kept.shape) in shapes  # noqa: E731
    with _kept_tensors(lm) as kept:
        _forward(lm, setup)
    head_gradient = (model.vocabulary, model.hidden)
    copies = sum(tensor.untyped_storage().nbytes() for tensor in kept if is_copy(tensor))
    others = [tensor for tensor in kept if not is_copy(tensor) and tuple(tensor.shape) != head_gradient]
    label = f"{model.name}, {setup.precision}{', LoRA' if setup.is_lora else ''}"
    stored_hidden = 4 * setup.predicted_tokens * model.hidden
    saved = sum(tensor.untyped_storage().nbytes() for tensor in others)
    checks = [Check(f"activations, {label}", activation_bytes(setup) + stored_hidden, saved)]
    return [*checks, Check(f"bf16 copies of weights, {label}", copies_bytes(setup), copies)] if copies else checks


def check_sharded_copies(model: Architecture) -> Check:
    """Autocast's copies under FSDP2 (one rank, gloo): kept whole, though the weights themselves are given back layer by layer."""
    lm = build(model).train()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shard_model(lm, init_device_mesh("cpu", (1,)))
        with _kept_tensors(lm) as kept:
            _forward(lm, small_setup(model))
    finally:
        distributed.destroy_process_group()
    real = sum(
        tensor.untyped_storage().nbytes() for tensor in kept if tensor.dtype == torch.bfloat16 and is_weight(tensor, model)
    )
    return Check(f"bf16 copies of weights, {model.name}, FSDP2", copies_bytes(small_setup(model)), real)


def is_weight(tensor: Tensor, model: Architecture) -> bool:
    """Whether it has the shape of a linear of the layers, or its transpose."""
    widths = (model.query_width, model.key_width, model.mlp)
    return tensor.dim() == 2 and sorted(tensor.shape) in [sorted((model.hidden, width)) for width in widths]


def small_setup(model: Architecture, **changes: Any) -> Setup:
    """Rows of equal length, their last three quarters predicted."""
    share = ROWS * _num_predicted() / (ROWS * LENGTH)
    return Setup(model, micro_tokens=ROWS * LENGTH, attended_tokens=LENGTH, predicted_share=share, **changes)


def check_plain_head() -> Check:
    """[N, V] tensors of the plain cross-entropy and KL at their fullest, in bytes."""
    from benchmarks.fused_head import build_variants

    sizes = argparse.Namespace(tokens=96, hidden=16, vocabulary=20_000, dtype="fp32", rounds=0, only=None)
    return Check("plain CE + KL, fp32", PLAIN_COPIES * 4 * 96 * 20_000, peak_bytes(build_variants(sizes)["naive CE+KL"]))


def check_cache(model: Architecture) -> Check:
    """A real cache of random laws on disk, against the sizing's with the mean number of entries that it holds."""
    rows = draw_rows(40, 60, model.vocabulary)
    lm = build(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cache"
        identity = CacheIdentity("m", "t", "c", "d", positions="all")
        teacher = Teacher(lambda: lm, model.vocabulary)
        manifest = write_cache(teacher, rows, identity, CaptureSettings(2048, 1_000_000), target=target, work=Path(folder) / "w")
        assert manifest is not None
        real = sum(file.stat().st_size for file in target.iterdir())
    kept = 64.0  # laws of random weights are flat: every token keeps them all
    sized = cache_size(model, Data("check", len(rows), manifest.num_tokens / len(rows), 1.0), kept)
    return Check(f"teacher cache, V {model.vocabulary}, 64 entries", sized.total_bytes, real)


def peak_bytes(run: Callable[[], None]) -> int:
    """Most bytes of tensors that exist at once while this runs, above those before; by torch's profiler, not by the process."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = most = 0
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def _forward(lm: nn.Module, setup: Setup) -> Tensor:
    rows: list[Row] = draw_rows(ROWS, LENGTH, setup.model.vocabulary)
    ids_BT = torch.tensor([row.input_ids for row in rows])
    predicts_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    predicts_BT[:, -_num_predicted() - 1 : -1] = True
    labels_N = ids_BT.roll(-1, 1)[predicts_BT]
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, -1] = 0  # a padded batch: with a mask of ones alone transformers leaves it out

    def weigh(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return torch.ones_like(chunk.nll_C), torch.zeros_like(chunk.nll_C)

    with torch.autocast("cpu", torch.bfloat16, enabled=setup.precision == "bf16"):
        terms = lm(input_ids=ids_BT, attention_mask=mask_BT, token_loss=TokenLossRequest(predicts_BT, labels_N, weigh))
    return terms["loss_sum"]


def _num_predicted() -> int:
    return LENGTH - LENGTH // 4 - 1


@contextmanager
def _kept_tensors(lm: nn.Module) -> Iterator[list[Tensor]]:
    """What the graph saves inside, one tensor for each memory; the model's own weights are left out."""
    own = {parameter.untyped_storage()._cdata for parameter in lm.parameters()}
    found: dict[int, Tensor] = {}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
    kept.extend(found.values())


def _bytes_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.untyped_storage().nbytes()


def all_checks() -> list[Check]:
    checks = [check_parameters(model) for model in MODELS.values()]
    for model in SMALL.values():
        checks.append(check_state(model))
        for precision in ("fp32", "bf16"):
            checks += check_saved(model, small_setup(model, precision=precision))
        checks += check_saved(model, small_setup(model, is_lora=True))
    checks += [check_sharded_copies(SMALL["LLaMA"]), check_plain_head(), check_cache(SMALL["LLaMA"])]
    return checks


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, torch {torch.__version__}, CPU\n\n| quantity | formula | real | formula / real |\n|---|---|---|---|")
    for check in all_checks():
        print(f"| {check.name} | {check.formula:,.0f} | {check.real:,.0f} | {check.ratio:.3f} |")


if __name__ == "__main__":
    main()
