"""What the tests of training share: one tiny base with its cache, and two ways to train on it."""

import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, set_seed

from components.artifacts import ROOT
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.params import TrainingParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training import trainer_setup
from components.training.meters import StepMeters
from components.training.post_train import PostTrainingResult, post_train_model
from components.training.sharded_state import whole
from components.training.trainer import ObjectiveTrainer
from tests.conftest import PAD, VOCABULARY, Row, build_cache, build_identity, build_model, build_rows

NO_TARGET = 3
"""The row without a target: a micro-batch of its own is empty."""


def training_rows() -> list[Row]:
    rows = build_rows(20)
    rows[NO_TARGET] = Row(rows[NO_TARGET].input_ids, [False] * len(rows[NO_TARGET].input_ids))
    return rows


ROWS = training_rows()
CPU = torch.device("cpu")
LIVE_PRESETS = {**PRESETS, "stm": replace(PRESETS["stm"], threshold_nats=5.0)}
"""The tiny base finds no token as easy as stm asks for (2.5 in perplexity), and an equality of zeros would say nothing."""
SMOOTH_ADAM = 1e-2
"""Adam's epsilon where trajectories are compared: with 1e-8 a gradient entry of pure rounding noise moves its weight as far
as any other does, and two equal runs part by that."""


def settings(**changes: Any) -> TrainingParams:
    few = {"num_steps": 4, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2, "max_grad_norm": 1e6}
    return TrainingParams(**{**few, "save_every_steps": 100, "log_every_steps": 1, **changes})


class FakeScores:
    """Columns that depend on the row alone, as artifacts/token_scores would hold them."""

    def read(self, fingerprint: str, num_targets: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(int(fingerprint[:8], 16))
        names = ("reference_nll", "mutual_information", "difficulty")
        return {name: 3 * torch.rand(num_targets, generator=draw) for name in names}


SCORES = FakeScores()
CLASS_OF_TOKEN = (torch.arange(VOCABULARY) % 5).to(torch.int8)


@dataclass
class Recorded:
    """Gradients of every step by parameter, log lines, the weights at the end, the threshold after every step, every mask.

    `masks`: of each micro-batch of this rank, in order, [N].
    """

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    thresholds: list[float | None] = field(default_factory=list)
    masks: list[list[bool]] = field(default_factory=list)


class GradientCallback(TrainerCallback):
    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        named = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
        self._recorded.gradients.append(
            {name: whole(gradient).clone() for name, gradient in named.items() if gradient is not None}
        )


@contextmanager
def watching(recorded: Recorded) -> Iterator[None]:
    """Within it, whatever trains leaves its thresholds and masks in `recorded`."""
    add, finish_step = StepMeters.add, ObjectiveTrainer.finish_step

    def add_and_keep(self: StepMeters, terms: Any, is_target_N: Tensor, threshold: float | None) -> None:
        recorded.masks.append((terms.mle_weight_N > 0).tolist())
        add(self, terms, is_target_N, threshold)

    def finish_and_keep(self: ObjectiveTrainer) -> None:
        finish_step(self)
        recorded.thresholds.append(self.threshold.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepMeters, "add", add_and_keep)
        patch.setattr(ObjectiveTrainer, "finish_step", finish_and_keep)
        yield


@functools.cache
def freeze_imported_modules() -> None:
    """The Trainer collects garbage after each training: half a second over everything that torch and transformers import."""
    gc.collect()
    gc.freeze()


def build_trainer(
    folder: Path,
    objective: Objective,
    cache: TeacherCacheReader,
    *,
    rows: list[Row] | None = None,
    model: Any = None,
    seed: int = 0,
    pad_token_id: int = PAD,
    student_loss: Any = None,
    **changes: Any,
) -> ObjectiveTrainer:
    """The real trainer on the tiny base, with the callback that moves its threshold."""
    freeze_imported_modules()
    set_seed(seed)
    return trainer_setup.build_trainer(
        build_model() if model is None else model,
        ROWS if rows is None else rows,
        cache,
        objective,
        settings(**changes),
        seed=seed,
        device=CPU,
        pad_token_id=pad_token_id,
        work=folder,
        scores=SCORES,
        class_of_token_V=CLASS_OF_TOKEN,
        student_loss=student_loss,
    )


def record(folder: Path, objective: Objective, cache: TeacherCacheReader, **changes: Any) -> Recorded:
    """Train and keep what happened."""
    trainer = build_trainer(folder, objective, cache, **changes)
    recorded = Recorded()
    trainer.add_callback(GradientCallback(recorded))
    trainer.args.adam_epsilon = SMOOTH_ADAM
    with watching(recorded):
        trainer.train()
    recorded.curve = [line for line in trainer.state.log_history if "loss" in line]
    recorded.weights = {name: whole(value).clone() for name, value in trainer.model.state_dict().items()}
    return recorded


def assert_same(one: Recorded, other: Recorded, *, has_one_threshold: bool = True) -> None:
    """The same gradients, curves and thresholds, but for the rounding of sums taken in another order.

    Not `has_one_threshold`: each micro-batch or row has its own, and what is recorded is the last.
    """
    assert len(one.gradients) == len(other.gradients) > 0
    for step, (first, second) in enumerate(zip(one.gradients, other.gradients, strict=True)):
        assert first.keys() == second.keys()
        largest = max(float(gradient.abs().max()) for gradient in first.values())
        assert largest > 0, "an equality of zeros says nothing"
        for name in first:
            tolerance = largest * 1e-5 * 2**step  # float noise of one step is a little more in the next
            torch.testing.assert_close(
                second[name], first[name], rtol=1e-4 * 2**step, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
            )
    for before, after in zip(one.curve, other.curve, strict=True):
        assert before.keys() == after.keys()
        for name in before.keys() - (set() if has_one_threshold else {"threshold"}):
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-5), (name, before["step"])
    if has_one_threshold:
        assert other.thresholds == [None if value is None else pytest.approx(value, rel=1e-4) for value in one.thresholds]


def largest_differences(one: Recorded, other: Recorded) -> tuple[float, float, float]:
    """Largest gradient difference of the first and of any step (a share of its largest entry); largest loss difference."""
    gaps = []
    for first, second in zip(one.gradients, other.gradients, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in first.values())
        gaps.append(max(float((first[name] - second[name]).abs().max()) for name in first) / largest)
    losses = [abs(a["loss"] - b["loss"]) for a, b in zip(one.curve, other.curve, strict=True)]
    return gaps[0], max(gaps), max(losses)


def post_train(
    work: Path,
    objective: Objective,
    cache: TeacherCacheReader,
    *,
    rows: list[Row] | None = None,
    model: Any = None,
    seed: int = 0,
    sink: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    validation: Any = (),
    make_probe: Any = None,
    **changes: Any,
) -> PostTrainingResult:
    return post_train_model(
        build_model() if model is None else model,
        ROWS if rows is None else rows,
        cache,
        objective,
        settings(**changes),
        seed=seed,
        device=CPU,
        pad_token_id=PAD,
        work=work,
        sink=sink,
        scores=SCORES,
        class_of_token_V=CLASS_OF_TOKEN,
        validation=validation,
        make_probe=make_probe,
    )


def leave(folder: Path, result: PostTrainingResult, recorded: Recorded) -> None:
    """Keep the outcome of a training in another process."""
    result.model.save_pretrained(folder / "model")
    (folder / "curve.json").write_text(json.dumps(result.curve))
    (folder / "history.json").write_text(json.dumps([recorded.thresholds, recorded.masks]))
    (folder / "resumed_at_step").write_text(str(result.resumed_at_step))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TeacherCacheReader:
    return build_cache(tmp_path_factory.mktemp("cache"), build_model(), ROWS, positions="all")


def reopen(cache: TeacherCacheReader) -> TeacherCacheReader:
    return TeacherCacheReader(cache._folder, build_identity(positions="all"))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, cache: TeacherCacheReader) -> Callable[..., Recorded]:
    """One process, padded rows, the whole step in one micro-batch: what every split, packing and number of ranks must equal."""
    known: dict[str, Recorded] = {}

    def run(objective: Objective, **changes: Any) -> Recorded:
        key = repr((objective, sorted(changes.items())))
        if key not in known:
            known[key] = record(tmp_path_factory.mktemp("alone"), objective, cache, **changes)
        return known[key]

    return run


def launch_ranks(program: str, *arguments: Path) -> None:
    """Run a file of tests as two ranks on gloo: `torchrun` starts its `main`."""
    quiet = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # without the first each rank believes that it is alone
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def leave_recorded(folder: Path, name: str, recorded: Recorded) -> None:
    """What one rank leaves of a run: the numbers of its own, and from the first the gradients and the curve."""
    assert torch.distributed.get_world_size() == 2, "both ranks would believe that they are alone"
    rank = torch.distributed.get_rank()
    own = {"thresholds": recorded.thresholds, "masks": recorded.masks, "curve": recorded.curve}
    (folder / f"{name}-{rank}.json").write_text(json.dumps(own))
    if rank == 0:
        steps = {f"{step}/{key}": grad for step, named in enumerate(recorded.gradients) for key, grad in named.items()}
        save_file(steps, folder / f"{name}-gradients.safetensors")
        save_file({key: weight.clone() for key, weight in recorded.weights.items()}, folder / f"{name}-weights.safetensors")


def read_recorded(folder: Path, name: str) -> list[Recorded]:
    """What the two ranks have left of a run; the second has no gradients."""
    gradients: dict[int, dict[str, Tensor]] = {}
    for key, gradient in load_file(folder / f"{name}-gradients.safetensors").items():
        step, _, parameter = key.partition("/")
        gradients.setdefault(int(step), {})[parameter] = gradient
    ranks = [Recorded(**json.loads((folder / f"{name}-{rank}.json").read_text())) for rank in range(2)]
    ranks[0].gradients = [gradients[step] for step in sorted(gradients)]
    ranks[0].weights = load_file(folder / f"{name}-weights.safetensors")
    return ranks


def masks_of_steps(ranks: list[Recorded], num_steps: int) -> list[list[bool]]:
    """The mask of each whole step, tokens in the order in which the rows were drawn: micro-batches go round the ranks."""
    parts = len(ranks[0].masks) // num_steps
    turns = [[masks for rank in ranks for masks in rank.masks[turn]] for turn in range(len(ranks[0].masks))]
    return [[mask for turn in turns[step * parts : (step + 1) * parts] for mask in turn] for step in range(num_steps)]
