"""Laws of the measured rates: every kind of step is really taken, by the trainer of post_train, and moves no weight."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.params import LoraParams, TrainingParams
from components.training import student_loss, teacher_rates
from components.training.teacher_rates import RateProbe, measure_rates
from tests.conftest import PAD, build_cache, build_model, build_rows

ROWS = build_rows(20)


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RateProbe:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    training = TrainingParams(batch_size=8, micro_batch_size=4, lora=LoraParams(rank=2))
    cache = build_cache(tmp_path, build_model(), ROWS, positions="all")
    return RateProbe(build_model, ROWS, cache, training, False, torch.device("cpu"), PAD, tmp_path / "trainers")


@pytest.mark.parametrize(
    "changes", [{}, {"with_prompt": True}, {"training": {"packing": True}}, {"training": {"precision": "bf16"}}]
)
def test_all_kinds_of_steps_are_measured(probe: RateProbe, changes: dict[str, Any]) -> None:
    training = probe.training.model_copy(update=changes.get("training", {}))
    rates = measure_rates(replace(probe, training=training, with_prompt=changes.get("with_prompt", False)))
    for steps in (rates.full, rates.lora):
        assert all(step is not None and step.best > 0 and step.num_rounds == 3 for step in vars(steps).values())
        assert steps.cached_per_online is not None
    assert rates.forward.best > 0 and rates.read.best > 0
    assert rates.teacher_bytes == sum(parameter.numel() * 4 for parameter in build_model().parameters())


def test_no_weight_moves(probe: RateProbe) -> None:
    made = []

    def load() -> Any:
        made.append(build_model())
        return made[-1]

    measure_rates(replace(probe, load=load))
    for name, weight in build_model().named_parameters():
        assert torch.equal(dict(made[0].named_parameters())[name], weight)


def test_what_does_not_fit_the_memory_is_left_out_and_the_others_are_measured(
    probe: RateProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room for a second model")

    monkeypatch.setattr(student_loss, "copy", SimpleNamespace(deepcopy=refuse))
    rates = measure_rates(probe)
    assert rates.full.online is None and rates.full.cached is not None and rates.full.cached_per_online is None
    assert rates.lora.online is not None, "with its adapters off it needs no copy"


def test_a_head_that_is_no_plain_projection_has_no_online_teacher_to_compare_with(
    probe: RateProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_rates, "head_of", lambda _: "its head is a Sequential, not a plain linear layer")
    rates = measure_rates(probe)
    assert rates.full.online is None and rates.lora.online is None and rates.full.cached is not None and rates.forward.best > 0


def test_micro_batches_are_those_of_a_training(probe: RateProbe) -> None:
    batches = probe.micro_batches()
    assert [len(batch) for batch in batches] == [4] * teacher_rates.NUM_MICRO_BATCHES
    assert len({row.fingerprint for batch in batches for row in batch}) == 16, "no row twice before all were there"
