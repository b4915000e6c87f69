"""Law of sharding: a model cut over two gloo ranks by FSDP2 takes the steps of a whole one, and leaves a whole one's checkpoints.

torchrun runs this very file as the ranks' program: `torchrun ... test_fsdp2.py <cache> <folder>`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from components.errors import BallastError, ParamsError, TrainingError
from components.objectives.objective import Objective
from components.params import LoraParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.callbacks import restore_objective
from components.training.lora import add_adapter
from components.training.sharded_state import whole_weights
from components.training.sharding import mesh_of_all_ranks, shard_model
from components.training.student_loss import StudentLoss
from tests.components.training.conftest import (
    LIVE_PRESETS,
    Recorded,
    assert_same,
    build_trainer,
    launch_ranks,
    leave_recorded,
    masks_of_steps,
    read_recorded,
    record,
    watching,
)
from tests.conftest import VOCABULARY, build_identity, build_model

NUM_STEPS = 3
LORA = LoraParams(enabled=True, rank=4, alpha=8.0)
KINDS: dict[str, Objective] = {
    **LIVE_PRESETS,
    "per_selected": replace(LIVE_PRESETS["uncertainty_aware"], normalizer="selected_tokens"),
    "online": replace(LIVE_PRESETS["sft_kl"], teacher="online", divergence="jsd", temperature=2.0),
    "tied": LIVE_PRESETS["uncertainty_aware"],
    "lora": LIVE_PRESETS["uncertainty_aware"],
    "clipped": LIVE_PRESETS["uncertainty_aware"],
}
CHANGES: dict[str, dict[str, Any]] = {"clipped": {"max_grad_norm": 0.5}}
MODEL: dict[str, dict[str, Any]] = {"tied": {"tie_word_embeddings": True, "num_hidden_layers": 2}}


def ways() -> dict[str, tuple[str, int, bool]]:
    """Every preset padded and packed; micro-batches of 4, 2 and 1 rows take turns."""
    found = [(kind, 2, number % 2 == 0) for number, kind in enumerate(KINDS) if kind not in LIVE_PRESETS]
    for number, kind in enumerate(LIVE_PRESETS):
        found += [(kind, 2, number % 2 == 0), (kind, (4, 1)[number // 2 % 2], number % 2 == 1)]
    return {f"{kind}-{rows}-{'packed' if packing else 'padded'}": (kind, rows, packing) for kind, rows, packing in found}


WAYS = ways()
LONGER: dict[str, Any] = {"num_steps": 4, "micro_batch_size": 2, "packing": True, "save_every_steps": 2}
RESUMED_KINDS = ("uncertainty_aware", "lora")


def student(kind: str) -> Any:
    model = build_model(**MODEL.get(kind, {}))
    return add_adapter(model, LORA) if kind == "lora" else model


def main(cache_folder: Path, folder: Path) -> None:
    """What each rank does: every way to train, a resume, and what is to be refused."""
    torch.set_num_threads(1)
    cache = TeacherCacheReader(cache_folder, build_identity(positions="all"))
    for name, (kind, rows, packing) in WAYS.items():
        model = student(kind)
        ready = StudentLoss(KINDS[kind], model) if kind == "online" else None  # its teacher stays whole on every rank
        changes = {"micro_batch_size": rows, "packing": packing, "num_steps": NUM_STEPS, **CHANGES.get(kind, {})}
        recorded = record(folder / "work", KINDS[kind], cache, model=shard_model(model), student_loss=ready, **changes)
        leave_recorded(folder, name, recorded)
    for kind in RESUMED_KINDS:
        leave_shards(folder / f"{kind}-shards-{torch.distributed.get_rank()}.json", shard_model(student(kind)))
        leave_resumed(folder / f"resume-{kind}", kind, cache)
    (folder / f"refused-{torch.distributed.get_rank()}.json").write_text(json.dumps(refusals(folder / "refused", cache)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def leave_shards(file: Path, model: torch.nn.Module) -> None:
    """Of every parameter: whether it is sharded, how many numbers it has, how many of them are here."""
    found = {
        name: [isinstance(parameter, DTensor), parameter.numel(), parameter.to_local().numel()]
        for name, parameter in model.named_parameters()
    }
    file.write_text(json.dumps(found))


def leave_resumed(folder: Path, kind: str, cache: TeacherCacheReader) -> None:
    """A whole run with its checkpoints, and one that goes on from the checkpoint of step 2."""
    for name, start in (("whole", None), ("resumed", folder / "whole" / "checkpoint-2")):
        trainer = build_trainer(folder / name, KINDS[kind], cache, model=shard_model(student(kind)), **LONGER)
        recorded = Recorded()
        if start is not None:
            restore_objective(trainer, start)
        with watching(recorded):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        recorded.curve = [line for line in trainer.state.log_history if "loss" in line]
        weights = whole_weights(trainer.model, keeps=True)
        trainer.save_model(str(folder / f"{name}-model"))
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            save_file({key: weight.clone() for key, weight in weights.items()}, folder / f"{name}.safetensors")
        history = [recorded.curve, recorded.thresholds, recorded.masks]
        (folder / f"{name}-{torch.distributed.get_rank()}.json").write_text(json.dumps(history))


def refusals(folder: Path, cache: TeacherCacheReader) -> list[list[str]]:
    """What a sharded model cannot do, and what is said then."""

    def shard_by_hand() -> Any:
        model = build_model()
        return fully_shard(model, mesh=mesh_of_all_ranks(torch.device("cpu")))

    attempts: list[Callable[[], Any]] = [
        lambda: build_trainer(folder, KINDS["sft"], cache, model=shard_by_hand(), micro_batch_size=4),
        lambda: build_trainer(folder, KINDS["online"], cache, model=shard_model(build_model()), micro_batch_size=4),
        lambda: shard_model(without_layer_names()),
    ]
    said = []
    for attempt in attempts:
        try:
            attempt()
            said.append(["", ""])
        except BallastError as error:
            said.append([type(error).__name__, str(error)])
    return said


def without_layer_names() -> Any:
    model = build_model()
    model._no_split_modules = None
    return model


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, cache: TeacherCacheReader) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    launch_ranks(__file__, cache._folder, folder)
    return folder


@pytest.mark.multi_process
@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_model_takes_the_steps_of_a_whole_one(
    tmp_path: Path, cache: TeacherCacheReader, alone: Callable[..., Recorded], ranks: Path, way: str
) -> None:
    kind, two = WAYS[way][0], read_recorded(ranks, way)
    own = {"model": student(kind)} if kind in ("tied", "lora") else {}
    changes = {"num_steps": NUM_STEPS, **CHANGES.get(kind, {})}
    one = record(tmp_path, KINDS[kind], cache, **own, **changes) if own else alone(KINDS[kind], **changes)
    assert_same(one, two[0])
    assert two[0].thresholds == two[1].thresholds, "one threshold, to the last bit"
    assert masks_of_steps(two, NUM_STEPS) == masks_of_steps([one], NUM_STEPS)
    for name, weight in one.weights.items():
        torch.testing.assert_close(two[0].weights[name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.multi_process
@pytest.mark.parametrize("kind", RESUMED_KINDS)
def test_every_parameter_is_sharded_and_each_rank_holds_its_half(ranks: Path, kind: str) -> None:
    shards = [json.loads((ranks / f"{kind}-shards-{rank}.json").read_text()) for rank in range(2)]
    assert shards[0].keys() == dict(student(kind).named_parameters()).keys()
    for name, (is_sharded, num_all, num_first) in shards[0].items():
        assert is_sharded and num_first == num_all / 2 and shards[1][name][2] == num_all / 2, name


@pytest.mark.multi_process
@pytest.mark.parametrize("kind", RESUMED_KINDS)
def test_a_resumed_sharded_run_ends_in_the_same_bits(ranks: Path, kind: str) -> None:
    folder = ranks / f"resume-{kind}"
    for rank in range(2):
        curve, thresholds, masks = json.loads((folder / f"whole-{rank}.json").read_text())
        found = json.loads((folder / f"resumed-{rank}.json").read_text())
        assert found == [curve, thresholds[2:], masks[4:]], "losses, thresholds and masks from step 2 on"
    expected = load_file(folder / "whole.safetensors")
    for name, weight in load_file(folder / "resumed.safetensors").items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.multi_process
@pytest.mark.parametrize("kind", RESUMED_KINDS)
def test_a_sharded_checkpoint_is_one_of_an_unsharded_run(
    tmp_path: Path, cache: TeacherCacheReader, ranks: Path, kind: str
) -> None:
    """One process goes on from it and ends where the two ranks do."""
    folder = ranks / f"resume-{kind}"
    trainer = build_trainer(tmp_path, KINDS[kind], cache, model=student(kind), **{**LONGER, "packing": False})
    restore_objective(trainer, folder / "whole" / "checkpoint-2")
    trainer.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-2"))
    expected = load_file(folder / "whole.safetensors")
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.multi_process
def test_a_saved_sharded_model_loads_as_a_whole_one(ranks: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = ranks / "resume-uncertainty_aware"
    loaded = AutoModelForCausalLM.from_pretrained(folder / "whole-model").state_dict()
    expected = load_file(folder / "whole.safetensors")
    assert loaded.keys() == expected.keys() and loaded["lm_head.weight"].shape[0] == VOCABULARY
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())


@pytest.mark.multi_process
def test_what_a_sharded_model_cannot_do_is_refused_on_every_rank(ranks: Path) -> None:
    said = [json.loads((ranks / f"refused-{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    unprobed, online, unnamed = said[0]
    assert unprobed[0] == TrainingError.__name__ and "call attach_token_loss(model) before fully_shard" in unprobed[1]
    assert online[0] == ParamsError.__name__ and "before shard_model(model)" in online[1]
    assert unnamed[0] == TrainingError.__name__ and "_no_split_modules" in unnamed[1]


def test_one_process_alone_cannot_shard() -> None:
    with pytest.raises(TrainingError, match="torchrun --standalone"):
        shard_model(build_model())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
