"""Laws of joining other ranks: fewer or others than params.yaml asks for are refused, and a rank alone is as it always was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from components.errors import BallastError, ParamsError, TrainingError
from components.params import ComputeParams
from components.run_params import LaunchParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.callbacks import OBJECTIVE_STATE, restore_objective
from components.training.ranks import SilentRecorder, join_ranks
from tests.components.training.conftest import CPU, LIVE_PRESETS, build_trainer

ONE_CPU = ComputeParams(device="cpu")
TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def of(engine: Any, num_processes: int = 2) -> LaunchParams:
    return LaunchParams(engine=engine, num_processes=num_processes)


def test_a_process_alone_is_the_first_of_one_and_records() -> None:
    ranks = join_ranks(LaunchParams(), ONE_CPU, {})
    assert ranks.is_first and ranks.count == 1 and ranks.device == CPU and not ranks.shards
    ranks.part()
    assert ranks.counted({"num_steps": 3}) == {"num_steps": 3}


@pytest.mark.parametrize(
    ("launch", "variables", "error", "words"),
    [
        (of("ddp"), {}, TrainingError, r"asks for 2 processes .* 1 came up"),
        (of("ddp", 4), TWO, TrainingError, r"asks for 4 processes .* 2 came up"),
        (LaunchParams(), TWO, ParamsError, r"2 processes were started for one .*engine: single"),
        (of("fsdp2"), {**TWO, "ACCELERATE_USE_FSDP": "true"}, TrainingError, "leaves out its FSDP on CPU"),
        (of("ddp"), {**TWO, "ACCELERATE_USE_DEEPSPEED": "true"}, ParamsError, "switches DEEPSPEED on"),
        (of("deepspeed_zero3"), TWO, TrainingError, "started without a DeepSpeed configuration"),
    ],
)
def test_other_ranks_than_those_asked_for_are_refused(
    launch: LaunchParams, variables: dict[str, str], error: type[BallastError], words: str
) -> None:
    with pytest.raises(error, match=words):
        join_ranks(launch, ONE_CPU, variables)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ParamsError, match="2 processes on a machine with 1 GPUs"):
        join_ranks(of("ddp"), ComputeParams(), TWO)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_processes": 2}, "engine 'single' is one process"),
        ({"config": "x.yaml"}, "engine 'single' is one process"),
        ({"engine": "fsdp2"}, "set num_processes, or engine: single"),
    ],
)
def test_a_launch_that_means_nothing_is_refused_in_params_yaml(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LaunchParams(**given)


def test_a_silent_recorder_takes_everything() -> None:
    recorder = SilentRecorder()
    recorder.log(1, {"loss": 0.5})
    recorder.refer_to_model()


def test_a_checkpoint_cut_for_other_ranks_is_refused_with_both_forms(tmp_path: Path, cache: TeacherCacheReader) -> None:
    trainer = build_trainer(tmp_path, LIVE_PRESETS["sft"], cache, num_steps=2, save_every_steps=1)
    trainer.train()
    file = tmp_path / "checkpoint-1" / OBJECTIVE_STATE
    restore_objective(trainer, file.parent)
    file.write_text(json.dumps({**json.loads(file.read_text()), "form": "DeepSpeed on 8 processes"}))
    with pytest.raises(TrainingError, match=r"form: DeepSpeed on 8 processes\).*form: whole.*rm -r"):
        restore_objective(trainer, file.parent)
