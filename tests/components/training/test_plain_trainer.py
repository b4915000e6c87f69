"""Laws of the loss in a plain Trainer: the steps of ObjectiveTrainer, for every preset, in every split and after a resume."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # torchrun runs this very file as the ranks' program

from components.artifacts import ROOT
from components.data.batching import pad_rows
from components.errors import CacheMismatchError, ParamsError, TrainingError
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.params import LoraParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.lora import add_adapter
from components.training.model_inputs import InputWatch
from components.training.plain_trainer import STATE, TokenObjectiveLoss, refuse_split_means
from components.training.row_order import RowOrder
from components.training.trainer_setup import training_arguments
from tests.components.training.conftest import (
    CLASS_OF_TOKEN,
    CPU,
    ROWS,
    SCORES,
    SMOOTH_ADAM,
    GradientCallback,
    Recorded,
    record,
    settings,
)
from tests.conftest import PAD, Row, build_cache, build_identity, build_model

KINDS: dict[str, Objective] = {
    "online": replace(PRESETS["sft_kl"], teacher="online", divergence="jsd", temperature=2.0),
    "per_row": replace(PRESETS["uncertainty_aware"], scope="sequence"),
    "protected": replace(PRESETS["uncertainty_aware"], keep=0.2, protect=("digit", "end_of_turn")),
    "scheduled": replace(PRESETS["sft_kl"], distil_weight=2.0, distil_weight_final=0.5),
    "warm": replace(PRESETS["uncertainty_aware"], score="entropy", select="low", warmup_steps=2),
}
RANKED = ("uncertainty_aware", "random_mask", "gain_aware")


def build_loss(objective: Objective, cache: TeacherCacheReader | None, **changes: Any) -> TokenObjectiveLoss:
    return TokenObjectiveLoss(
        objective, **{"cache": cache, "rows": ROWS, "scores": SCORES, "class_of_token_V": CLASS_OF_TOKEN, **changes}
    )


def build_plain(
    folder: Path, loss: TokenObjectiveLoss, *, rows: list[Row] = ROWS, model: Any = None, attach: bool = True, **changes: Any
) -> Trainer:
    """transformers' own Trainer, on the rows in the order in which ObjectiveTrainer takes them."""
    params = settings(**changes)
    arguments = training_arguments(params, 0, CPU, folder)
    arguments.train_sampling_strategy = "sequential"
    arguments.adam_epsilon = SMOOTH_ADAM  # as in `record`
    trainer = Trainer(
        build_model() if model is None else model,
        arguments,
        loss.collator(PAD),
        [rows[index] for index in RowOrder(len(rows), params.num_steps * params.batch_size, 0)],
        compute_loss_func=loss,
        callbacks=[loss.callback],
    )
    if attach:
        loss.attach(trainer.model)
    return trainer


def record_plain(trainer: Trainer, resume: Path | None = None) -> Recorded:
    recorded = Recorded()
    trainer.add_callback(GradientCallback(recorded))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    recorded.curve = [line for line in trainer.state.log_history if "loss" in line]
    recorded.weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return recorded


def assert_same_steps(ours: Recorded, theirs: Recorded) -> None:
    assert len(ours.gradients) == len(theirs.gradients) > 0
    for step, (mine, other) in enumerate(zip(ours.gradients, theirs.gradients, strict=True)):
        assert mine.keys() == other.keys()
        largest = max(float(gradient.abs().max()) for gradient in other.values())
        for name in other:
            # Adam turns float noise of one step into a little more in the next.
            torch.testing.assert_close(
                mine[name],
                other[name],
                rtol=1e-4 * 4**step,
                atol=largest * 1e-5 * 10**step,
                msg=lambda m, name=name, step=step: f"step {step}, {name}: {m}",
            )
    for mine_line, other_line in zip(ours.curve, theirs.curve, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert mine_line[name] == pytest.approx(other_line[name], rel=2e-3, abs=1e-5), (name, other_line["step"])


@pytest.mark.parametrize("kind", PRESETS)
def test_a_plain_trainer_takes_the_steps_of_the_objective_trainer_also_after_a_resume(
    tmp_path: Path, cache: TeacherCacheReader, kind: str
) -> None:
    for size in (8, 2):  # accumulation 1 and 4
        theirs = record(tmp_path / "theirs", PRESETS[kind], cache, micro_batch_size=size)
        folder = tmp_path / f"ours-{size}"
        ours = record_plain(build_plain(folder, build_loss(PRESETS[kind], cache), micro_batch_size=size, save_every_steps=2))
        assert_same_steps(ours, theirs)
    resumed = record_plain(
        build_plain(folder, build_loss(PRESETS[kind], cache), micro_batch_size=2, save_every_steps=2), folder / "checkpoint-2"
    )
    assert len(resumed.gradients) == 2
    for again, first in zip(resumed.gradients, ours.gradients[2:], strict=True):
        assert all(torch.equal(again[name], first[name]) for name in first), "bit for bit"
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in ours.weights.items())
    assert [line["loss"] for line in resumed.curve] == [line["loss"] for line in ours.curve]


@pytest.mark.parametrize("kind", KINDS)
def test_other_objectives_take_the_same_steps_too(tmp_path: Path, cache: TeacherCacheReader, kind: str) -> None:
    # A row of one target is its own quantile: in the fused head's two passes rounding decides whether it is selected.
    rows = [row for row in ROWS if sum(row.is_target) > 1] if kind == "per_row" else ROWS
    theirs = record(tmp_path, KINDS[kind], cache, rows=rows, micro_batch_size=2)
    ours = build_plain(tmp_path, build_loss(KINDS[kind], cache, rows=rows), rows=rows, micro_batch_size=2)
    assert_same_steps(record_plain(ours), theirs)


def test_without_a_cache_the_teacher_is_the_attached_model_as_it_was_or_the_model_given(tmp_path: Path) -> None:
    online = replace(PRESETS["uncertainty_aware"], teacher="online")
    theirs = record(tmp_path, online, None)  # type: ignore[arg-type]
    own = build_loss(PRESETS["uncertainty_aware"], None, rows=())
    given = build_loss(PRESETS["uncertainty_aware"], None, rows=(), teacher=build_model())
    for loss in (own, given):
        assert_same_steps(record_plain(build_plain(tmp_path, loss)), theirs)


def test_with_lora_the_teacher_is_the_model_without_its_adapter(tmp_path: Path) -> None:
    lora = LoraParams(enabled=True, rank=4, alpha=8.0)
    runs = []
    for teacher in (None, build_model()):
        torch.manual_seed(0)
        loss = build_loss(PRESETS["uncertainty_aware"], None, rows=(), teacher=teacher)
        runs.append(record_plain(build_plain(tmp_path, loss, model=add_adapter(build_model(), lora))))
    assert all("lora_" in name for name in runs[0].gradients[0])
    assert_same_steps(*runs)


def test_evaluation_leaves_the_training_as_it_was(tmp_path: Path, cache: TeacherCacheReader) -> None:
    quiet = record_plain(build_plain(tmp_path, build_loss(PRESETS["random_mask"], cache), micro_batch_size=2))
    for kind in ("random_mask", "uncertainty_aware"):
        loss = build_loss(PRESETS[kind], cache)
        trainer = build_plain(tmp_path, loss, micro_batch_size=2)
        trainer.eval_dataset = ROWS[:6]
        before = trainer.evaluate()["eval_loss"]
        assert before > 0 and not len(loss.threshold.take_pending())
        trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 1
        run = record_plain(trainer)
        assert sum("eval_loss" in line for line in trainer.state.log_history) >= 4
        if kind == "random_mask":
            assert all(torch.equal(run.weights[name], weight) for name, weight in quiet.weights.items())


def test_the_threshold_is_kept_in_the_trainers_own_checkpoint_and_another_objective_refuses_it(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    loss = build_loss(PRESETS["uncertainty_aware"], cache)
    first = loss.threshold.value
    trainer = build_plain(tmp_path, loss, save_every_steps=2)
    trainer.train()
    text = (tmp_path / "checkpoint-4" / "trainer_state.json").read_text()
    assert STATE in text and repr(loss.threshold.value) in text and loss.threshold.value != first
    other = build_plain(tmp_path, build_loss(PRESETS["masked_mle"], cache))
    with pytest.raises(TrainingError, match="step 2 was made with another objective"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_loss_that_is_not_finite_names_the_row_before_the_step_is_taken(tmp_path: Path, cache: TeacherCacheReader) -> None:
    loss = build_loss(PRESETS["uncertainty_aware"], cache)
    trainer = build_plain(tmp_path, loss)
    with torch.no_grad():
        trainer.model.lm_head.weight[ROWS[0].input_ids[-1]] = float("nan")
    before = trainer.model.model.embed_tokens.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"loss is nan at step 0 \(first in row ([0-9a-f]{32})") as caught:
        trainer.train()
    assert any(f"first in row {row.fingerprint}" in str(caught.value) for row in ROWS)
    assert torch.equal(trainer.model.model.embed_tokens.weight, before)


def test_what_is_forgotten_is_named(tmp_path: Path, cache: TeacherCacheReader) -> None:
    with pytest.raises(TrainingError, match=r"loss\.attach\(trainer\.model\)"):
        build_plain(tmp_path, build_loss(PRESETS["sft"], cache), attach=False).train()
    trainer = build_plain(tmp_path, loss := build_loss(PRESETS["sft"], cache))
    trainer.remove_callback(loss.callback)
    with pytest.raises(TrainingError, match=r"callbacks=\[loss\.callback\]"):
        trainer.train()
    trainer = build_plain(tmp_path, build_loss(PRESETS["sft_kl"], cache))
    trainer.data_collator = lambda rows: pad_rows(rows, PAD)
    with pytest.raises(TrainingError, match="lacks the teacher's columns"):
        trainer.train()
    for wrong, kind, changes in (
        ("read from a teacher cache", "stm", {"cache": None}),
        ("give rows=", "uncertainty_aware_static", {"rows": ()}),
        ("give scores=", "excess_aware", {"scores": None}),
    ):
        with pytest.raises(ParamsError, match=wrong):
            build_loss(PRESETS[kind], **{"cache": cache, **changes})
    with pytest.raises(ParamsError, match="selected_tokens"):
        build_loss(replace(PRESETS["uncertainty_aware"], normalizer="selected_tokens"), cache)


@pytest.mark.parametrize(
    ("objective", "changes", "reason"),
    [
        (PRESETS["sft_kl"], {"teacher": build_model()}, "cache= and teacher= are two teachers"),
        (PRESETS["masked_mle"], {"teacher": build_model()}, "teacher= has no effect"),
        (PRESETS["masked_mle"], {"teacher": build_model(), "cache": None}, "teacher= has no effect"),
        (PRESETS["sft_kl"], {"rows": ()}, "give rows="),
        (
            replace(PRESETS["sft_kl"], divergence="reverse_kl"),
            {},
            r"objective\.divergence: reverse_kl needs the teacher's full law",
        ),
        (replace(PRESETS["masked_mle"], keep=1.5), {}, r"objective\.keep: "),
        (replace(PRESETS["sft"], distil_on="rest"), {"cache": None}, r"objective\.distil_on: 'rest' is empty"),
        (replace(PRESETS["masked_mle"], scope="dataset"), {}, r"objective\.scope: 'dataset' needs a score that does not move"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(
    cache: TeacherCacheReader, objective: Objective, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ParamsError, match=reason):
        build_loss(objective, **{"cache": cache, **changes})


def test_a_cache_for_scores_and_a_model_to_distil_from_go_together_where_the_objective_says_online(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    online = replace(PRESETS["uncertainty_aware_static"], teacher="online", divergence="reverse_kl")
    theirs = record(tmp_path, online, cache)
    assert_same_steps(record_plain(build_plain(tmp_path, build_loss(online, cache, teacher=build_model()))), theirs)


def test_several_gpus_in_one_process_and_means_of_means_are_refused(tmp_path: Path) -> None:
    for wrong, faults in (("DataParallel", {"n_gpu": 2}), ("average_tokens_across_devices=True", {"world_size": 2})):
        arguments = {"n_gpu": 1, "world_size": 1, "average_tokens_across_devices": False, **faults}
        with pytest.raises(TrainingError, match=wrong):
            refuse_split_means(SimpleNamespace(**arguments))  # type: ignore[arg-type]


def test_a_cache_of_another_model_is_refused_when_attached(tmp_path: Path, cache: TeacherCacheReader) -> None:
    with pytest.raises(CacheMismatchError, match="nats per token before the first step"):
        build_loss(PRESETS["uncertainty_aware"], cache).attach(build_model(seed=1))


def test_columns_that_were_rounded_on_the_way_are_refused(cache: TeacherCacheReader) -> None:
    loss, model = build_loss(PRESETS["uncertainty_aware"], cache), build_model()
    loss.attach(model)
    batch = loss.collator(PAD)(ROWS[:2])
    labels = batch.pop("labels")
    with pytest.raises(TrainingError, match="cast_forward_inputs=False"):
        model(**batch | {"teacher_label_logprob": batch["teacher_label_logprob"].bfloat16()})
    assert float(loss(model.eval()(**batch), labels, 10).detach()) > 0, "as they are they pass"


def test_packed_rows_give_the_sum_of_padded_ones(cache: TeacherCacheReader) -> None:
    sums = []
    for packing in (False, True):
        loss, model = build_loss(PRESETS["uncertainty_aware"], cache), build_model().eval()
        loss.attach(model)
        batch = loss.collator(PAD, packing=packing)([{"input_ids": r.input_ids, "labels": labels_of(r)} for r in ROWS[:5]])
        labels = batch.pop("labels")
        sums.append(float(loss(model(**batch, use_cache=False), labels, 1).detach()))  # as the Trainer sets it
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def labels_of(row: Row) -> list[int]:
    return [token if wanted else -100 for token, wanted in zip(row.input_ids, row.is_target, strict=True)]


def test_attaching_again_leaves_one_hook() -> None:
    watch, model = InputWatch(), build_model()
    for _ in range(2):
        watch.attach(model)
    assert len(model._forward_pre_hooks) == 1


def main(cache_folder: Path, folder: Path) -> None:
    """What each rank does."""
    torch.set_num_threads(1)
    cache = TeacherCacheReader(cache_folder, build_identity(positions="all"))
    for kind in RANKED:
        recorded = record_plain(build_plain(folder / kind, build_loss(PRESETS[kind], cache), micro_batch_size=2))
        assert torch.distributed.get_world_size() == 2, "both ranks would believe they are alone"
        if int(os.environ["RANK"]) == 0:
            steps = {f"{step}/{name}": grad for step, named in enumerate(recorded.gradients) for name, grad in named.items()}
            save_file(steps, folder / f"{kind}.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.multi_process
def test_two_ranks_take_the_steps_of_one_process(tmp_path: Path) -> None:
    cache = build_cache(tmp_path, build_model(), ROWS, positions="all")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, __file__, str(cache._folder), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for kind in RANKED:
        together = load_file(tmp_path / f"{kind}.safetensors")
        alone = record(tmp_path, PRESETS[kind], cache)
        gradients = [{name: together[f"{step}/{name}"] for name in named} for step, named in enumerate(alone.gradients)]
        assert_same_steps(Recorded(gradients=gradients), Recorded(gradients=alone.gradients))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
