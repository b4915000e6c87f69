"""Law of several processes: under FSDP2 and DDP, two gloo ranks with unequal numbers of targets have one process's gradients.

torchrun runs this very file as the ranks' program: `torchrun ... test_sharded_head.py <folder>`.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from components.artifacts import ROOT
from components.objectives.model_head import TokenLossRequest, attach_token_loss
from components.objectives.row_loss import TokenChunk
from components.objectives.sparse_target import TeacherTargets
from tests.conftest import VOCABULARY, build_model

T, K = 12, 4
KINDS = ("ddp", "untied", "untied_attached_late", "tied", "tied_in_one_group", "untied_in_bf16")
TARGETS_OF_ROWS = (9, 2, 0, 5)
"""The second rank has a row without any target; the two halves have 11 and 5."""


def weigh(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
    selected_C = chunk.nll_C >= 4.0
    return selected_C, 0.5 * ~selected_C


def build_step(rows: slice, rank_without_targets: bool = False) -> tuple[dict[str, Tensor], TokenLossRequest]:
    """These rows of the batch: inputs, and the request with a teacher drawn from a seed per row."""
    inputs_BT = torch.randint(1, VOCABULARY, (4, T), generator=torch.Generator().manual_seed(0))
    counts_B1 = torch.tensor(TARGETS_OF_ROWS)[:, None] * (not rank_without_targets)
    is_predicting_BT = (torch.arange(T)[None] < counts_B1)[rows]
    laws = [
        (3 * torch.randn(T, VOCABULARY, generator=torch.Generator().manual_seed(row))).log_softmax(1)
        for row in range(rows.start, rows.stop)
    ]
    logprobs_NV = torch.stack(laws)[is_predicting_BT]
    values_NK, ids_NK = logprobs_NV.topk(K, dim=1)
    tail_N = logprobs_NV.scatter(1, ids_NK, float("-inf")).logsumexp(1)
    teacher = TeacherTargets(ids_NK, values_NK, tail_N, torch.zeros(len(ids_NK)))
    labels_N = inputs_BT.roll(-1, 1)[rows][is_predicting_BT]
    request = TokenLossRequest(is_predicting_BT, labels_N, weigh, teacher=teacher, chunk_bytes=3 * VOCABULARY * 4)
    return {"input_ids": inputs_BT[rows]}, request


def build(kind: str) -> Any:
    return build_model(tie_word_embeddings=kind.startswith("tied"))


def wrap(kind: str, model: Any) -> Any:
    """DDP, or FSDP2 on every decoder layer, the head where it has a weight of its own, and the root."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if kind == "ddp":
        attach_token_loss(model)
        return nn.parallel.DistributedDataParallel(model)
    if kind != "untied_attached_late":
        assert attach_token_loss(model) is None
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard = partial(
        fully_shard, mesh=init_device_mesh("cpu", (2,)), mp_policy=low if kind == "untied_in_bf16" else MixedPrecisionPolicy()
    )
    for layer in model.model.layers:
        shard(layer)
    if kind.startswith("untied"):
        shard(model.lm_head)
    if kind == "tied_in_one_group":
        shard([model.model.embed_tokens, model.lm_head])
    shard(model)
    if kind == "untied_attached_late":
        assert attach_token_loss(model) is None
    return model


def main(folder: Path) -> None:
    """Two steps of every kind, so that what a step leaves behind shows; then one in which the second rank has no target."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    assert torch.distributed.get_world_size() == 2
    shards: dict[str, bool] = {}
    for kind in KINDS:
        model = wrap(kind, build(kind))
        for step in ("first", "second", "empty"):
            inputs, request = build_step(slice(2 * rank, 2 * rank + 2), step == "empty" and rank == 1)
            model.zero_grad()
            terms = model(**inputs, token_loss=request)
            assert terms["loss_sum"].dtype == torch.float32
            (2 * terms["loss_sum"]).backward()  # times the ranks: DDP and FSDP take the mean
            gradients = whole_gradients(model, kind, shards)
            if rank == 0:
                save_file(gradients, folder / f"{kind}-{step}.safetensors")
    if rank == 0:
        (folder / "shards.json").write_text(json.dumps(shards))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def whole_gradients(model: Any, kind: str, shards: dict[str, bool]) -> dict[str, Tensor]:
    from torch.distributed.tensor import DTensor

    gradients = {}
    for name, weight in model.named_parameters():
        gradient = weight.grad
        is_sharded = (
            isinstance(weight, DTensor) and weight.placements[0].is_shard() and weight.to_local().numel() < weight.numel()
        )
        shards[f"{kind}/{name}"] = is_sharded
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        gradients[name.removeprefix("module.")] = whole.clone()
    return gradients


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, __file__, str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.multi_process
@pytest.mark.parametrize("step", ["first", "second", "empty"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_gradients_of_one_process(ranks: Path, kind: str, step: str) -> None:
    model = build(kind)
    attach_token_loss(model)
    inputs, request = build_step(slice(0, 2 if step == "empty" else 4))
    model(**inputs, token_loss=request)["loss_sum"].backward()
    together = load_file(ranks / f"{kind}-{step}.safetensors")
    assert together.keys() == {name for name, _ in model.named_parameters()}
    for name, weight in model.named_parameters():
        largest = float(weight.grad.abs().max())
        assert largest > 0
        error = float((together[name] - weight.grad).abs().max())
        assert error <= (0.1 if kind == "untied_in_bf16" else 1e-5) * largest, f"{name}: {error} of {largest}"


@pytest.mark.multi_process
def test_under_fsdp_every_parameter_was_a_shard_and_under_ddp_none(ranks: Path) -> None:
    shards = json.loads((ranks / "shards.json").read_text())
    assert {name.partition("/")[0] for name in shards} == set(KINDS)
    for name, is_sharded in shards.items():
        assert is_sharded == (not name.startswith("ddp/")), name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
