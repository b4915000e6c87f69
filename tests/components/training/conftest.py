"""What the tests of training share: one tiny base with its cache, and two ways to train on it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from components.objectives.objective import Objective
from components.params import TrainingParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training import trainer_setup
from components.training.post_train import PostTrainingResult, post_train_model
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
    """Gradients of every step by parameter, log lines, and the weights at the end."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


class GradientCallback(TrainerCallback):
    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        named = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
        self._recorded.gradients.append({name: gradient.clone() for name, gradient in named.items() if gradient is not None})


def build_trainer(
    folder: Path,
    objective: Objective,
    cache: TeacherCacheReader,
    *,
    rows: list[Row] | None = None,
    model: Any = None,
    seed: int = 0,
    pad_token_id: int = PAD,
    **changes: Any,
) -> ObjectiveTrainer:
    """The real trainer on the tiny base, with the callback that moves its threshold."""
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
    )


def record(folder: Path, objective: Objective, cache: TeacherCacheReader, **changes: Any) -> Recorded:
    """Train and keep what happened."""
    trainer = build_trainer(folder, objective, cache, **changes)
    recorded = Recorded()
    trainer.add_callback(GradientCallback(recorded))
    trainer.train()
    recorded.curve = [line for line in trainer.state.log_history if "loss" in line]
    recorded.weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return recorded


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
    )


def leave(folder: Path, result: PostTrainingResult) -> None:
    """Keep the outcome of a training in another process."""
    result.model.save_pretrained(folder / "model")
    (folder / "curve.json").write_text(json.dumps(result.curve))
    (folder / "resumed_at_step").write_text(str(result.resumed_at_step))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TeacherCacheReader:
    return build_cache(tmp_path_factory.mktemp("cache"), build_model(), ROWS, positions="all")


def reopen(cache: TeacherCacheReader) -> TeacherCacheReader:
    return TeacherCacheReader(cache._folder, build_identity(positions="all"))
