"""Laws of a whole run: killed, stopped or with damaged checkpoints, the same command ends in the same bits."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from components.errors import CacheMismatchError, InterruptedStageError, ParamsError, TrainingError
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.params import LoraParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training import callbacks
from components.training.checkpoints import latest_checkpoint, seal_checkpoint
from components.training.trainer import ObjectiveTrainer
from components.training.trainer_setup import accumulation_steps, training_arguments
from tests.components.training.conftest import CPU, ROWS, Recorded, leave, post_train, reopen, settings, watching
from tests.conftest import build_cache, build_identity, build_model, end_of_child, start_child

LENGTH: dict[str, Any] = {"num_steps": 11, "save_every_steps": 3, "log_every_steps": 4, "micro_batch_size": 4}
"""Kills fall between log lines and in the middle of a pass over the data."""
KINDS: dict[str, tuple[Objective, dict[str, Any]]] = {
    "uncertainty_aware": (PRESETS["uncertainty_aware"], {}),
    "random_mask": (PRESETS["random_mask"], {}),
    "dropout": (PRESETS["sft_kl"], {"lora": LoraParams(enabled=True, rank=4, dropout=0.3), "weight_decay": 0.1}),
}
Sink = Callable[[int, dict[str, float]], None]


def run_to_the_end(folder: Path, kind: str, cache: TeacherCacheReader, sink: Sink = lambda step, values: None) -> None:
    objective, changes = KINDS[kind]
    recorded = Recorded()
    with watching(recorded):
        result = post_train(folder / "work", objective, reopen(cache), sink=sink, **{**LENGTH, **changes})
    leave(folder, result, recorded)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    return load_file(folder / "model" / "model.safetensors"), json.loads((folder / "curve.json").read_text())


def history(folder: Path) -> list[Any]:
    """Thresholds by step and masks by micro-batch, since the start or the resume."""
    found: list[Any] = json.loads((folder / "history.json").read_text())
    return found


def assert_same_bits(folder: Path, whole: Path) -> None:
    weights, curve = outcome(folder)
    expected_weights, expected_curve = outcome(whole)
    assert curve == expected_curve
    start = int((folder / "resumed_at_step").read_text())
    (thresholds, masks), (expected_thresholds, expected_masks) = history(folder), history(whole)
    assert len(expected_thresholds) == LENGTH["num_steps"] and thresholds == expected_thresholds[start:]
    assert masks == expected_masks[2 * start :], "two micro-batches for each step"
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: TeacherCacheReader) -> dict[str, Path]:
    """Each kind, run without interruption in a process of its own."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        assert end_of_child(start_child(lambda kind=kind, folder=folder: run_to_the_end(folder, kind, cache))) == 0
    return folders


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_log(step: int) -> Callable[[Path, str, TeacherCacheReader], None]:
    def work(folder: Path, kind: str, cache: TeacherCacheReader) -> None:
        run_to_the_end(folder, kind, cache, sink=lambda at, _: die() if at == step else None)

    return work


def die_before_the_seal(folder: Path, kind: str, cache: TeacherCacheReader) -> None:
    """The checkpoint of step 6 is whole but for its seal."""
    seal = callbacks.seal_checkpoint
    callbacks.seal_checkpoint = lambda path: die() if path.name == "checkpoint-6" else seal(path)  # type: ignore[assignment]
    run_to_the_end(folder, kind, cache)


def die_in_the_middle_of_a_file(folder: Path, kind: str, cache: TeacherCacheReader) -> None:
    """The checkpoint of step 9 stops inside a file that torch writes."""
    save = torch.save

    def cut_short(value: Any, file: Any, *rest: Any, **more: Any) -> None:
        if "checkpoint-9" in str(file):
            Path(file).write_bytes(b"PK\x03\x04")
            die()
        save(value, file, *rest, **more)

    torch.save = cut_short
    run_to_the_end(folder, kind, cache)


DEATHS = [
    ("uncertainty_aware", die_at_log(4), 3),
    ("uncertainty_aware", die_at_log(11), 9),
    ("uncertainty_aware", die_before_the_seal, 3),
    ("uncertainty_aware", die_in_the_middle_of_a_file, 6),
    ("random_mask", die_at_log(8), 6),
    ("dropout", die_at_log(8), 6),
]


@pytest.mark.parametrize(("kind", "death", "resumed_at"), DEATHS)
def test_a_training_killed_anywhere_ends_in_the_same_weights_and_the_same_curve(
    tmp_path: Path, cache: TeacherCacheReader, whole: dict[str, Path], kind: str, death: Any, resumed_at: int
) -> None:
    assert end_of_child(start_child(lambda: death(tmp_path, kind, cache))) == -signal.SIGKILL
    assert end_of_child(start_child(lambda: run_to_the_end(tmp_path, kind, cache))) == 0
    assert int((tmp_path / "resumed_at_step").read_text()) == resumed_at
    assert_same_bits(tmp_path, whole[kind])


def test_a_training_killed_at_a_moment_of_the_clocks_choice_ends_the_same(
    tmp_path: Path, cache: TeacherCacheReader, whole: dict[str, Path]
) -> None:
    """Three kills from outside, one after the other, then the end."""
    slow: Sink = lambda step, values: time.sleep(0.05)  # noqa: E731
    for number in range(3):
        child = start_child(lambda: run_to_the_end(tmp_path, "uncertainty_aware", cache, slow))
        deadline = time.monotonic() + 60
        while not list((tmp_path / "work").glob(f"checkpoint-{3 * (number + 1)}")) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.004 * number)
        os.kill(child, signal.SIGKILL)
        end_of_child(child)
    assert end_of_child(start_child(lambda: run_to_the_end(tmp_path, "uncertainty_aware", cache))) == 0
    assert_same_bits(tmp_path, whole["uncertainty_aware"])


@pytest.mark.parametrize("name", ["model.safetensors", "objective_state.json", "seal.json"])
def test_a_flipped_bit_in_the_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, cache: TeacherCacheReader, whole: dict[str, Path], name: str
) -> None:
    assert end_of_child(start_child(lambda: die_at_log(8)(tmp_path, "uncertainty_aware", cache))) == -signal.SIGKILL
    file = tmp_path / "work" / "checkpoint-6" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert end_of_child(start_child(lambda: run_to_the_end(tmp_path, "uncertainty_aware", cache))) == 0
    assert int((tmp_path / "resumed_at_step").read_text()) == 3
    assert_same_bits(tmp_path, whole["uncertainty_aware"])


def test_a_finished_training_that_was_not_published_yet_is_not_trained_any_further(
    tmp_path: Path, cache: TeacherCacheReader, whole: dict[str, Path]
) -> None:
    for _ in range(2):
        assert end_of_child(start_child(lambda: run_to_the_end(tmp_path, "uncertainty_aware", cache))) == 0
    assert int((tmp_path / "resumed_at_step").read_text()) == LENGTH["num_steps"]
    assert_same_bits(tmp_path, whole["uncertainty_aware"])


def test_sigterm_ends_with_code_143_keeps_a_checkpoint_and_the_same_command_completes(
    tmp_path: Path, cache: TeacherCacheReader, whole: dict[str, Path]
) -> None:
    def told_to_stop(step: int, _: dict[str, float]) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    child = start_child(lambda: run_to_the_end(tmp_path, "uncertainty_aware", cache, told_to_stop))
    assert end_of_child(child) == 143
    kept = latest_checkpoint(tmp_path / "work")
    assert kept is not None and kept.name == "checkpoint-5" and not (tmp_path / "model").exists()
    assert end_of_child(start_child(lambda: run_to_the_end(tmp_path, "uncertainty_aware", cache))) == 0
    assert int((tmp_path / "resumed_at_step").read_text()) == 5
    assert_same_bits(tmp_path, whole["uncertainty_aware"])


def test_the_handler_of_sigterm_is_given_back_and_the_message_says_what_to_do(tmp_path: Path, cache: TeacherCacheReader) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedStageError, match=r"stopped at step 2 of 11; a checkpoint is kept"):
        post_train(
            tmp_path,
            PRESETS["sft"],
            cache,
            sink=lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None,
            **{**LENGTH, "log_every_steps": 1},
        )
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_breaks_in_mid_training_leaves_only_whole_checkpoints(tmp_path: Path, cache: TeacherCacheReader) -> None:
    model = build_model()

    def poison(step: int, _: dict[str, float]) -> None:
        if step == 5:
            with torch.no_grad():
                model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"the loss is nan at step 5"):
        post_train(tmp_path, PRESETS["uncertainty_aware"], cache, model=model, sink=poison, **{**LENGTH, "log_every_steps": 1})
    kept = latest_checkpoint(tmp_path)
    assert kept is not None and kept.name == "checkpoint-3"
    assert all(torch.isfinite(weight).all() for weight in load_file(kept / "model.safetensors").values())


def test_the_curve_goes_to_the_sink_line_by_line_numbers_only(tmp_path: Path, cache: TeacherCacheReader) -> None:
    lines: list[tuple[int, dict[str, float]]] = []
    result = post_train(tmp_path, PRESETS["uncertainty_aware"], cache, sink=lambda *line: lines.append(line), **LENGTH)
    assert [step for step, _ in lines] == [line["step"] for line in result.curve] == [4, 8, 11]
    for (_, sent), kept in zip(lines, result.curve, strict=True):
        assert all(isinstance(value, float) for value in sent.values()) and sent.items() <= kept.items()


def test_a_resumed_training_tells_the_sink_what_a_killed_one_may_have_kept_to_itself(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    whole: list[tuple[int, dict[str, float]]] = []
    post_train(tmp_path / "whole", PRESETS["uncertainty_aware"], cache, sink=lambda *line: whole.append(line), **LENGTH)
    child = start_child(lambda: run_to_the_end(tmp_path, "uncertainty_aware", cache, lambda step, _: leave_at_once(step == 8)))
    assert end_of_child(child) == 9
    again: list[tuple[int, dict[str, float]]] = []
    post_train(tmp_path / "work", PRESETS["uncertainty_aware"], cache, sink=lambda *line: again.append(line), **LENGTH)
    assert again == whole and [step for step, _ in again] == [4, 8, 11]


def leave_at_once(is_time: bool) -> None:
    if is_time:
        os._exit(9)


def test_the_tokens_told_are_those_that_the_student_was_given_and_a_resumed_run_tells_them_all(
    tmp_path: Path, cache: TeacherCacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"inputs": 0, "targets": 0}
    compute_loss = ObjectiveTrainer.compute_loss

    def counting(self: ObjectiveTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        given["inputs"] += int(inputs["attention_mask"].sum())
        given["targets"] += int((inputs["labels"][:, 1:] != -100).sum())
        return compute_loss(self, model, inputs, *rest, **named)

    monkeypatch.setattr(ObjectiveTrainer, "compute_loss", counting)
    whole = post_train(tmp_path, PRESETS["sft_kl"], cache, **LENGTH)
    assert (whole.num_steps, whole.num_input_tokens, whole.num_target_tokens) == (11, given["inputs"], given["targets"])
    resumed = post_train(tmp_path, PRESETS["sft_kl"], cache, **LENGTH)
    assert resumed.resumed_at_step > 0 and resumed.num_input_tokens == whole.num_input_tokens > 0


def test_it_learns_its_rows(tmp_path: Path, cache: TeacherCacheReader) -> None:
    for kind in ("masked_mle", "uncertainty_aware"):
        curve = post_train(tmp_path / kind, PRESETS[kind], cache, num_steps=25, log_every_steps=5).curve
        assert curve[-1]["nll"] < 0.8 * curve[0]["nll"], kind


def test_bf16_trains_fp32_weights(tmp_path: Path, cache: TeacherCacheReader) -> None:
    result = post_train(tmp_path, PRESETS["uncertainty_aware"], cache, precision="bf16", num_steps=20, log_every_steps=5)
    assert result.curve[-1]["nll"] < result.curve[0]["nll"]
    for weight in result.model.parameters():
        assert weight.dtype == torch.float32 and bool(torch.isfinite(weight).all())


def test_an_objective_of_another_temperature_than_the_caches_is_refused_with_both_values(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    hot = build_cache(tmp_path, build_model(), ROWS, temperature=2.0)
    with pytest.raises(CacheMismatchError, match=r"temperature 1\.0.*made at 2\.0"):
        post_train(tmp_path / "work", PRESETS["uncertainty_aware"], hot)
    post_train(tmp_path / "hot", replace(PRESETS["uncertainty_aware"], temperature=2.0), hot)
    post_train(tmp_path / "sft", PRESETS["masked_mle"], hot)
    with pytest.raises(CacheMismatchError, match=r"temperature 2\.0.*made at 1\.0"):
        post_train(tmp_path / "work", replace(PRESETS["sft_kl"], temperature=2.0), cache)


def test_processes_share_a_step_and_do_not_enlarge_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert accumulation_steps(settings(batch_size=16, micro_batch_size=4), 1) == 4
    assert accumulation_steps(settings(batch_size=16, micro_batch_size=4), 2) == 2
    with pytest.raises(ParamsError, match=r"batch_size 16 is not a multiple of micro_batch_size 16 x 2 processes; lower"):
        accumulation_steps(settings(batch_size=16, micro_batch_size=16), 2)
    assert training_arguments(settings(micro_batch_size=2), 0, CPU, tmp_path).gradient_accumulation_steps == 4
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    assert training_arguments(settings(), 0, CPU, tmp_path)._n_gpu == 1, "one process uses one of the GPUs that it sees"


@pytest.mark.parametrize("score", ["student_nll", "probability_gain"])
def test_an_online_teacher_distils_the_prompt_with_a_cache_that_has_none(tmp_path: Path, score: str) -> None:
    """The cache serves the base's logprob of the labels alone; mask and pull are those of a cache with the prompt."""
    mask: dict[str, Any] = {"score": score, "threshold_value": 0.1} if score == "probability_gain" else {}
    objective = replace(PRESETS["uncertainty_aware"], teacher="online", prompt_tokens="distil_only", **mask)
    curves = []
    for positions in ("targets", "all"):
        build_cache(tmp_path / positions, build_model(), ROWS, positions=positions)
        held = TeacherCacheReader(tmp_path / positions / "cache", build_identity(positions=positions))
        curves.append(post_train(tmp_path / positions / "work", objective, held).curve)
    for one, other in zip(*curves, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4) and one["distillation_kl"] >= 0
        assert one["selected_fraction"] == pytest.approx(other["selected_fraction"])


def test_per_selected_token_a_step_that_selects_nothing_is_no_larger_than_any_other(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    objective = replace(PRESETS["uncertainty_aware"], threshold_nats=1e9, distil_weight=0.5)
    runs = [
        post_train(tmp_path / normalizer, replace(objective, normalizer=normalizer), cache).curve  # type: ignore[arg-type]
        for normalizer in ("target_tokens", "selected_tokens")
    ]
    for plain, per_selected in zip(*runs, strict=True):
        assert per_selected["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)
        assert per_selected["loss"] == pytest.approx(plain["loss"], rel=1e-5)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_with_a_planted_pickle_is_not_run_though_its_seal_is_right(
    tmp_path: Path, cache: TeacherCacheReader, name: str
) -> None:
    stop = {"num_steps": 4, "save_every_steps": 2, "micro_batch_size": 4}

    def interrupt(step: int, values: dict[str, float]) -> None:
        if step >= 2:
            os.kill(os.getpid(), signal.SIGKILL)

    child = start_child(
        lambda: post_train(tmp_path / "work", PRESETS["sft"], reopen(cache), sink=interrupt, log_every_steps=3, **stop)
    )
    assert end_of_child(child) == -signal.SIGKILL
    [checkpoint] = (tmp_path / "work").rglob("checkpoint-2")
    torch.save({"bomb": Bomb(tmp_path / "gone-off")}, checkpoint / name)
    seal_checkpoint(checkpoint)
    with contextlib.suppress(Exception):  # refusing is right, and so is not reading it at all
        post_train(tmp_path / "work", PRESETS["sft"], reopen(cache), log_every_steps=3, **stop)
    assert not (tmp_path / "gone-off").exists()
