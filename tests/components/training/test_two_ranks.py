"""Law of several processes: two gloo ranks with unequal numbers of targets take the same steps as one process.

torchrun runs this very file as the ranks' program: `torchrun ... test_two_ranks.py <cache> <folder>`.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from components.errors import InterruptedStageError
from components.objectives.objective import Objective
from components.teacher_cache.reader import TeacherCacheReader
from components.training.checkpoints import is_sealed
from components.training.trainer import ObjectiveTrainer
from tests.components.training.conftest import (
    LIVE_PRESETS,
    Recorded,
    assert_same,
    launch_ranks,
    leave_recorded,
    masks_of_steps,
    post_train,
    read_recorded,
    record,
    watching,
)
from tests.conftest import build_identity, build_model

NUM_STEPS = 3
KINDS: dict[str, Objective] = {
    **LIVE_PRESETS,
    "per_selected": replace(LIVE_PRESETS["uncertainty_aware"], normalizer="selected_tokens"),
    "online": replace(LIVE_PRESETS["sft_kl"], teacher="online", divergence="jsd", temperature=2.0),
    "per_row": replace(LIVE_PRESETS["uncertainty_aware"], scope="sequence"),
    "entropy_low": replace(LIVE_PRESETS["uncertainty_aware"], score="entropy", select="low"),
}


def ways() -> dict[str, tuple[str, int, bool]]:
    """Every preset in micro-batches of 4, 2 and 1 rows, padded and packed; the other kinds once."""
    found = [(kind, 2, number % 2 == 0) for number, kind in enumerate(KINDS) if kind not in LIVE_PRESETS]
    for number, kind in enumerate(LIVE_PRESETS):
        found += [(kind, 4, number % 2 == 0), (kind, 2, number % 2 == 1), (kind, 1, number % 3 == 0)]
    return {f"{kind}-{rows}-{'packed' if packing else 'padded'}": (kind, rows, packing) for kind, rows, packing in found}


WAYS = ways()
RESUMED: dict[str, Any] = {"num_steps": 7, "micro_batch_size": 2, "save_every_steps": 3, "log_every_steps": 2}
RESUMED_KINDS = {"uncertainty_aware": False, "random_mask": True}
"""Kinds to interrupt; whether their rows are packed."""


def main(cache_folder: Path, folder: Path) -> None:
    """What each rank does: every way to train, then the runs that only the second rank is told to stop, and their resume."""
    torch.set_num_threads(1)
    cache = TeacherCacheReader(cache_folder, build_identity(positions="all"))
    for name, (kind, rows, packing) in WAYS.items():
        changes = {"micro_batch_size": rows, "packing": packing, "num_steps": NUM_STEPS}
        leave_recorded(folder, name, record(folder / "work" / name, KINDS[kind], cache, **changes))
    if torch.distributed.get_rank() == 1:
        save = ObjectiveTrainer._save_rng_state
        ObjectiveTrainer._save_rng_state = lambda *arguments: (time.sleep(0.3), save(*arguments))  # the seal must wait for it
    for kind, packing in RESUMED_KINDS.items():
        whole_run = training(folder / "whole" / kind, kind, cache, packing=packing)
        leave_result(folder / f"whole-{kind}", *whole_run)
        stop_second_rank(folder / "cut" / kind, kind, cache, packing=packing)
        leave_result(folder / f"resumed-{kind}", *training(folder / "cut" / kind, kind, cache, packing=packing))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def training(work: Path, kind: str, cache: TeacherCacheReader, **changes: Any) -> tuple[Any, Recorded]:
    recorded = Recorded()
    with watching(recorded):
        return post_train(work, KINDS[kind], cache, **RESUMED, **changes), recorded


def stop_second_rank(work: Path, kind: str, cache: TeacherCacheReader, *, packing: bool) -> None:
    """A signal in the second step."""
    model, passes, rank = build_model(), [], torch.distributed.get_rank()
    proofs = 3 if packing else 1  # alignment; padded and packed

    def tell(*_: Any) -> None:
        passes.append(1)
        if rank == 1 and len(passes) == proofs + 3:  # two for each step
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_pre_hook(tell)
    try:
        training(work, kind, cache, model=model, packing=packing)
        raise AssertionError("it was told to stop")
    except InterruptedStageError as error:
        (work / f"stopped-{rank}").write_text(str(error))
    torch.distributed.barrier()


def leave_result(folder: Path, result: Any, recorded: Recorded) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    history = [result.resumed_at_step, result.curve, recorded.thresholds, recorded.masks]
    (folder / f"history-{torch.distributed.get_rank()}.json").write_text(json.dumps(history))
    if torch.distributed.get_rank() == 0:
        save_file({name: weight.clone() for name, weight in result.model.state_dict().items()}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, cache: TeacherCacheReader) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    launch_ranks(__file__, cache._folder, folder)
    return folder


@pytest.mark.multi_process
def test_every_preset_meets_every_micro_batch_size_and_both_layouts() -> None:
    for kind in LIVE_PRESETS:
        own = [(rows, packing) for name, rows, packing in WAYS.values() if name == kind]
        assert {rows for rows, _ in own} == {4, 2, 1} and {packing for _, packing in own} == {False, True}


@pytest.mark.multi_process
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_take_the_steps_of_one_process(alone: Callable[..., Recorded], ranks: Path, way: str) -> None:
    one, two = alone(KINDS[WAYS[way][0]], num_steps=NUM_STEPS), read_recorded(ranks, way)
    has_one_threshold = KINDS[WAYS[way][0]].scope != "sequence"
    assert_same(one, two[0], has_one_threshold=has_one_threshold)
    if has_one_threshold:
        assert two[0].thresholds == two[1].thresholds, "one threshold, to the last bit"
    assert masks_of_steps(two, NUM_STEPS) == masks_of_steps([one], NUM_STEPS)


@pytest.mark.multi_process
@pytest.mark.parametrize("kind", RESUMED_KINDS)
def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_the_resume_ends_in_the_same_bits(ranks: Path, kind: str) -> None:
    messages = [(ranks / "cut" / kind / f"stopped-{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and "stopped at step 2 of 7" in messages[0]
    checkpoint = ranks / "cut" / kind / "checkpoint-7"
    assert is_sealed(checkpoint) and {"rng_state_0.pth", "rng_state_1.pth"} <= set(
        json.loads((checkpoint / "seal.json").read_text())
    )
    for rank in range(2):
        _, curve, thresholds, masks = json.loads((ranks / f"whole-{kind}" / f"history-{rank}.json").read_text())
        found = json.loads((ranks / f"resumed-{kind}" / f"history-{rank}.json").read_text())
        assert found == [2, curve, thresholds[2:], masks[4:]], "losses, thresholds and masks from step 2 on"
    expected = load_file(ranks / f"whole-{kind}" / "model.safetensors")
    for name, weight in load_file(ranks / f"resumed-{kind}" / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
