"""Laws of early stopping: it keeps the best look's weights, ends when looks get no better, and survives a kill."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from components.data.training_rows import count_targets
from components.errors import InterruptedStageError
from components.objectives.presets import PRESETS
from components.params import EarlyStoppingParams, ProbeParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.early_stopping import EarlyStopping
from components.training.post_train import PostTrainingResult
from components.training.probe import TrainingProbe
from components.training.probe_record import ProbeRow
from components.training.trainer import ObjectiveTrainer
from tests.components.training.conftest import post_train
from tests.conftest import build_model, build_rows, end_of_child, start_child

MEMORISING: dict[str, Any] = {"num_steps": 40, "learning_rate": 3e-2, "save_every_steps": 5}


@dataclass(frozen=True)
class Held:
    """A validation row, without a law and without a teacher."""

    input_ids: list[int]
    is_target: list[bool]
    laws: None = None
    teacher: None = None


HELD_OUT = [Held(row.input_ids, row.is_target) for row in build_rows(8, seed=9)]


def run(work: Path, cache: TeacherCacheReader, *, patience: int = 2, **changes: Any) -> PostTrainingResult:
    stopping = EarlyStoppingParams(enabled=True, every_steps=2, patience=patience)
    return post_train(work, PRESETS["sft"], cache, validation=HELD_OUT, **{**MEMORISING, "early_stopping": stopping, **changes})


def validation_nll(model: Any) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for row in HELD_OUT:
            logprobs = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(1)
            for position in range(1, len(row.input_ids)):
                if row.is_target[position]:
                    total -= float(logprobs[position - 1, row.input_ids[position]])
                    count += 1
    return total / count


def test_it_ends_after_so_many_looks_without_gain_and_leaves_the_best_weights(tmp_path: Path, cache: TeacherCacheReader) -> None:
    result = run(tmp_path, cache)
    looks = dict(result.validation_looks)
    assert result.best_step == min(looks, key=lambda step: looks[step])
    assert max(looks) == result.best_step + 2 * 2 < 40, "two looks after the best one, two steps apart"
    assert validation_nll(result.model) == pytest.approx(looks[result.best_step], rel=1e-5)


def test_the_looks_are_means_over_target_tokens(tmp_path: Path, cache: TeacherCacheReader) -> None:
    result = run(tmp_path, cache, learning_rate=1e-12, num_steps=2)
    assert result.validation_looks[0][1] == pytest.approx(validation_nll(build_model()), rel=1e-5)


def test_with_endless_patience_every_step_is_taken(tmp_path: Path, cache: TeacherCacheReader) -> None:
    result = run(tmp_path, cache, patience=100, num_steps=8)
    assert [step for step, _ in result.validation_looks] == [2, 4, 6, 8] and result.curve[-1]["step"] == 8


def test_a_killed_run_goes_on_to_the_same_best_weights(tmp_path: Path, cache: TeacherCacheReader) -> None:
    whole = run(tmp_path / "whole", cache)

    def die_at_step(step: int, values: dict[str, float]) -> None:
        if step == 8:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

    child = start_child(lambda: run(tmp_path / "killed", cache, sink=die_at_step))
    assert end_of_child(child) == -9
    resumed = run(tmp_path / "killed", cache)
    assert resumed.resumed_at_step == 5
    assert resumed.validation_looks == whole.validation_looks and resumed.best_step == whole.best_step
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


def test_only_the_best_file_outlives_a_checkpoint(tmp_path: Path, cache: TeacherCacheReader) -> None:
    result = run(tmp_path, cache)
    files = {file.name for file in (tmp_path / "best").iterdir()}
    assert f"step-{result.best_step}.safetensors" in files and len(files) <= 3


def test_an_adapter_s_best_weights_are_its_own(tmp_path: Path, cache: TeacherCacheReader) -> None:
    result = run(tmp_path, cache, lora={"enabled": True, "rank": 2})
    looks = dict(result.validation_looks)
    assert result.best_step is not None
    assert validation_nll(result.model) == pytest.approx(looks[result.best_step], rel=1e-4)


# --- beside the probe ------------------------------------------------------------------------------------------------

LOOKS_SELDOM = ProbeParams(every_steps=1000, num_examples=0)


def probed(work: Path, cache: TeacherCacheReader, params: ProbeParams = LOOKS_SELDOM, **changes: Any) -> PostTrainingResult:
    """Memorising stops early; the probe looks at the first step and at the last, unless told otherwise."""
    rows = [ProbeRow(str(n), row.input_ids, row.is_target, torch.zeros(count_targets(row))) for n, row in enumerate(HELD_OUT)]

    def make_probe(trainer: ObjectiveTrainer) -> TrainingProbe:
        given: dict[str, Any] = {"name": "sft", "threshold": trainer.threshold.current, "params": params, "pad_token_id": 0}
        return TrainingProbe(PRESETS["sft"], rows, [], sink=changes.get("sink"), **given)

    return run(work, cache, make_probe=make_probe, **changes)


def nll_of(look: dict[str, Any]) -> float:
    return float(look["classes"]["end_of_turn"]["mean_student_nll"])


def test_the_last_step_and_the_returned_model_are_looked_at(tmp_path: Path, cache: TeacherCacheReader) -> None:
    sent: dict[tuple[int, str], float] = {}
    result = probed(tmp_path, cache, sink=lambda step, values: sent.update({(step, name): values[name] for name in values}))
    record, looks, last = result.probe or {}, dict(result.validation_looks), result.validation_looks[-1][0]
    assert result.best_step is not None and 0 < result.best_step < last < 40
    assert [look["step"] for look in record["steps"]] == [0, last]
    assert record["returned"]["step"] == record["best_step"] == result.best_step
    assert nll_of(record["returned"]) == pytest.approx(looks[result.best_step], rel=1e-4), "the probe's rows are the validation's"
    assert nll_of(record["steps"][-1]) == pytest.approx(looks[last], rel=1e-4)
    assert record["validation_looks"] == [{"step": step, "nll": nll} for step, nll in result.validation_looks]
    assert {step: sent[step, "early_stopping/validation_nll"] for step in looks} == looks
    assert sent[last, "early_stopping/best_step"] == result.best_step
    assert (result.best_step, "probe_returned/classes/end_of_turn/mean_student_nll") in sent


def test_a_look_at_the_best_step_serves_for_the_returned_model(tmp_path: Path, cache: TeacherCacheReader) -> None:
    record = probed(tmp_path, cache, ProbeParams(every_steps=2, num_examples=0)).probe or {}
    assert record["returned"] in record["steps"] and record["returned"]["step"] == record["best_step"]


def test_a_signal_to_stop_adds_no_look_and_the_resumed_record_is_that_of_one_go(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    whole = probed(tmp_path / "whole", cache).probe

    def told_to_stop(step: int, values: dict[str, float]) -> None:
        if step == 4 and "loss" in values:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedStageError, match="stopped at step 5"):
        probed(tmp_path / "stopped", cache, sink=told_to_stop)
    state = json.loads((tmp_path / "stopped" / "checkpoint-5" / "objective_state.json").read_text())
    assert state["observers"]["probe"]["looked"] == [0]
    assert probed(tmp_path / "stopped", cache).probe == whole


def test_without_early_stopping_the_record_names_no_best_step(tmp_path: Path, cache: TeacherCacheReader) -> None:
    record = probed(tmp_path, cache, num_steps=2, early_stopping=EarlyStoppingParams()).probe or {}
    assert (record["best_step"], record["validation_looks"], record["returned"]) == (None, [], None)


def test_without_validation_rows_it_is_refused() -> None:
    with pytest.raises(AssertionError, match="validation rows"):
        EarlyStopping(EarlyStoppingParams(enabled=True), [], pad_token_id=0, folder=Path("."))
