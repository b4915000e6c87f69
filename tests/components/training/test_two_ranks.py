"""Law of several processes: two gloo ranks with unequal numbers of targets take the same steps as one process.

torchrun runs this very file as the ranks' program: `torchrun ... test_two_ranks.py <cache> <folder>`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from components.artifacts import ROOT
from components.errors import InterruptedStageError
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.teacher_cache.reader import TeacherCacheReader
from components.training.checkpoints import is_sealed
from components.training.trainer import ObjectiveTrainer
from tests.components.training.conftest import post_train, record
from tests.conftest import build_identity, build_model

KINDS: dict[str, Objective] = {**PRESETS, "excess": replace(PRESETS["uncertainty_aware"], score="excess")}
RESUMED: dict[str, Any] = {"num_steps": 7, "micro_batch_size": 2, "save_every_steps": 3, "log_every_steps": 4}


def main(cache_folder: Path, folder: Path) -> None:
    """What each rank does: every kind of objective, then one run that only the second rank is told to stop, and its resume."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    cache = TeacherCacheReader(cache_folder, build_identity(positions="all"))
    for kind, objective in KINDS.items():
        recorded = record(folder / kind, objective, cache, micro_batch_size=2)
        assert torch.distributed.get_world_size() == 2, "both ranks would believe they are alone"
        if rank == 0:
            steps = {f"{step}/{name}": grad for step, named in enumerate(recorded.gradients) for name, grad in named.items()}
            save_file(steps, folder / f"{kind}.safetensors")
            (folder / f"{kind}.json").write_text(json.dumps(recorded.curve))

    if rank == 1:
        save = ObjectiveTrainer._save_rng_state
        ObjectiveTrainer._save_rng_state = lambda *arguments: (time.sleep(0.3), save(*arguments))  # the seal must wait for it
    model, passes = build_model(), []

    def tell(*_: Any) -> None:
        passes.append(1)
        if rank == 1 and len(passes) == 4:  # one to prove alignment, two for each step
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_pre_hook(tell)
    try:
        post_train(folder / "work", KINDS["uncertainty_aware"], cache, model=model, **RESUMED)
        raise AssertionError("it was told to stop")
    except InterruptedStageError as error:
        (folder / f"stopped-{rank}").write_text(str(error))
    torch.distributed.barrier()
    result = post_train(folder / "work", KINDS["uncertainty_aware"], cache, **RESUMED)
    if rank == 0:
        save_file({name: weight.clone() for name, weight in result.model.state_dict().items()}, folder / "resumed.safetensors")
        (folder / "resumed.json").write_text(json.dumps([result.resumed_at_step, result.curve]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, cache: TeacherCacheReader) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    quiet = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, __file__, str(cache._folder), str(folder)],
        cwd=ROOT,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.multi_process
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_take_the_steps_of_one_process(tmp_path: Path, cache: TeacherCacheReader, ranks: Path, kind: str) -> None:
    alone = record(tmp_path, KINDS[kind], cache)
    together = load_file(ranks / f"{kind}.safetensors")
    assert len(together) == sum(len(named) for named in alone.gradients) > 0
    for step, named in enumerate(alone.gradients):
        largest = max(float(gradient.abs().max()) for gradient in named.values())
        for name, gradient in named.items():
            torch.testing.assert_close(
                together[f"{step}/{name}"],
                gradient,
                rtol=1e-4 * 4**step,
                atol=largest * 1e-5 * 10**step,
                msg=lambda m, name=name: f"{name}: {m}",
            )
    for ours, theirs in zip(json.loads((ranks / f"{kind}.json").read_text()), alone.curve, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-3, abs=1e-5), (name, ours["step"])


@pytest.mark.multi_process
def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_the_resume_completes(
    tmp_path: Path, cache: TeacherCacheReader, ranks: Path
) -> None:
    messages = [(ranks / f"stopped-{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and "stopped at step 2 of 7" in messages[0]
    resumed_at, curve = json.loads((ranks / "resumed.json").read_text())
    assert resumed_at == 2
    checkpoint = ranks / "work" / "checkpoint-7"
    assert is_sealed(checkpoint) and {"rng_state_0.pth", "rng_state_1.pth"} <= set(
        json.loads((checkpoint / "seal.json").read_text())
    )
    alone = post_train(tmp_path, KINDS["uncertainty_aware"], cache, **RESUMED)
    assert [line["step"] for line in curve] == [line["step"] for line in alone.curve]
    for ours, theirs in zip(curve, alone.curve, strict=True):
        assert ours["nll"] == pytest.approx(theirs["nll"], rel=2e-3)
    for name, weight in load_file(ranks / "resumed.safetensors").items():
        torch.testing.assert_close(weight, alone.model.state_dict()[name], rtol=1e-2, atol=1e-3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
