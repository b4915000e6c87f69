"""Laws of the step that steps: the gradient is that of one sum over the step's targets, however the step is cut up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from components.data.batching import pad_rows
from components.errors import TrainingError
from components.objectives.fused_head import HeadStatistics
from components.objectives.labels import IGNORED_LABEL
from components.objectives.objective import Objective
from components.objectives.row_loss import TokenChunk
from components.objectives.token_loss import token_terms
from components.objectives.weights import TokenFacts
from components.teacher_cache.reader import TeacherCacheReader
from components.training.collator import TeacherCollator
from components.training.columns import take_columns
from components.training.row_order import RowOrder
from components.training.student_loss import predicted_logits
from components.training.threshold import ScoreThreshold
from components.training.token_layout import layout_of
from components.training.token_weigher import TokenWeigher
from components.training.trainer_setup import initial_scores
from tests.components.training.conftest import LIVE_PRESETS, NO_TARGET, ROWS, SCORES, Recorded, assert_same, build_trainer, record
from tests.conftest import PAD, build_model

KINDS: dict[str, Objective] = {
    **LIVE_PRESETS,
    "gain": replace(
        LIVE_PRESETS["uncertainty_aware"], score="probability_gain", threshold_value=0.1, prompt_tokens="ignore", scope="dataset"
    ),
    "column": replace(LIVE_PRESETS["uncertainty_aware"], score="column", column="difficulty", scope="dataset"),
    "informed": replace(LIVE_PRESETS["uncertainty_aware"], score="mutual_information", scope="dataset", keep=0.3),
    "per_selected": replace(LIVE_PRESETS["uncertainty_aware"], normalizer="selected_tokens"),
    "protected": replace(LIVE_PRESETS["uncertainty_aware"], keep=0.2, protect=("digit", "end_of_turn")),
    "scheduled": replace(LIVE_PRESETS["sft_kl"], distil_weight=2.0, distil_weight_final=0.5),
    "online": replace(LIVE_PRESETS["sft_kl"], teacher="online", divergence="jsd", temperature=2.0),
    "per_row": replace(LIVE_PRESETS["uncertainty_aware"], scope="sequence"),
    "entropy_low": replace(LIVE_PRESETS["uncertainty_aware"], score="entropy", select="low"),
    "absolute": replace(LIVE_PRESETS["masked_mle"], threshold_nats=3.0),
    "warm": replace(LIVE_PRESETS["uncertainty_aware"], warmup_steps=2),
}
SPLITS = (8, 2, 1)
"""Rows of a micro-batch: a step of eight rows comes in one, four and eight of them."""


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_a_step_into_micro_batches_keeps_gradient_and_trajectory(
    tmp_path: Path, cache: TeacherCacheReader, kind: str
) -> None:
    sizes = SPLITS if kind in LIVE_PRESETS else (SPLITS[0], SPLITS[-1])
    runs = [record(tmp_path, KINDS[kind], cache, micro_batch_size=size) for size in sizes]
    for other in runs[1:]:
        assert_same(runs[0], other, has_one_threshold=KINDS[kind].scope != "sequence")


def first_step_by_hand(objective: Objective, cache: TeacherCacheReader) -> dict[str, Tensor]:
    """Gradient of the first step, one unpadded row at a time, divided once by all targets."""
    model = build_model()
    rows = [ROWS[index] for index, _ in zip(RowOrder(len(ROWS), 8, 0), range(8), strict=False)]
    threshold = ScoreThreshold(objective, initial_scores(objective, ROWS, cache, SCORES)).value
    total: Tensor = torch.zeros(())
    num_targets = 0
    for row in rows:
        with_prompt = objective.prompt_tokens == "distil_only"
        batch = TeacherCollator(PAD, cache, scores=SCORES, columns=objective.columns, with_prompt=with_prompt)([row])
        columns = take_columns(batch)
        layout = layout_of(batch, batch["labels"], with_prompt)
        logits_NV = predicted_logits(model, {"input_ids": batch["input_ids"]}, layout.predicts_BT)
        assert columns.teacher is not None
        facts = TokenFacts(
            layout.is_target_N, layout.row_N, teacher_logprob_N=columns.teacher.label_logprob_N, columns=columns.scores
        )
        total = total + token_terms(objective, logits_NV, layout.labels_N, columns.teacher, facts, threshold).loss_sum
        num_targets += int(layout.is_target_N.sum())
    (total / num_targets).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", sorted({*LIVE_PRESETS, "entropy_low", "absolute", "gain"} - {"random_mask"}))
def test_the_first_gradient_is_the_sum_over_unpadded_rows_divided_once(
    tmp_path: Path, cache: TeacherCacheReader, kind: str
) -> None:
    by_hand = first_step_by_hand(KINDS[kind], cache)
    by_trainer = record(tmp_path, KINDS[kind], cache, micro_batch_size=4, num_steps=1).gradients[0]
    assert by_hand.keys() == by_trainer.keys()
    for name, gradient in by_hand.items():
        torch.testing.assert_close(by_trainer[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_sft_is_the_plain_trainers_cross_entropy(tmp_path: Path, cache: TeacherCacheReader) -> None:
    rows = [ROWS[index] for index in RowOrder(len(ROWS), 8, 0)]
    model = build_model()
    batch = pad_rows(rows, PAD)
    model(**batch).loss.backward()
    ours = record(tmp_path, LIVE_PRESETS["sft"], cache, num_steps=1).gradients[0]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_keeping_every_token_is_sft(tmp_path: Path, cache: TeacherCacheReader) -> None:
    plain = record(tmp_path, LIVE_PRESETS["sft"], cache)
    for kind in ("uncertainty_aware", "random_mask"):
        every = record(tmp_path, replace(LIVE_PRESETS[kind], keep=1.0), cache)
        for name, weight in plain.weights.items():
            torch.testing.assert_close(every.weights[name], weight, rtol=1e-5, atol=1e-6)


def test_what_stands_in_the_padding_changes_nothing(tmp_path: Path, cache: TeacherCacheReader) -> None:
    runs = [record(tmp_path, LIVE_PRESETS["uncertainty_aware"], cache, pad_token_id=pad) for pad in (PAD, 17)]
    assert_same(*runs)


def test_more_padding_changes_nothing(tmp_path: Path, cache: TeacherCacheReader, alone: Callable[..., Recorded]) -> None:
    def wider(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        fill = {"input_ids": PAD, "attention_mask": 0, "labels": IGNORED_LABEL}
        return batch | {name: functional.pad(batch[name], (0, 7), value=value) for name, value in fill.items()}

    for kind in ("uncertainty_aware", "gain_aware"):
        run = record_with_batches(tmp_path, LIVE_PRESETS[kind], cache, lambda collate, rows: wider(collate(rows)))
        assert_same(alone(LIVE_PRESETS[kind], num_steps=3), run)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", sorted(LIVE_PRESETS.keys() - {"random_mask"}))
def test_the_order_of_the_rows_of_a_step_changes_nothing(
    tmp_path: Path, cache: TeacherCacheReader, alone: Callable[..., Recorded], kind: str, packing: bool
) -> None:
    """But for random_mask, whose draw is that of a row's place in the step."""
    turned = record_with_batches(tmp_path, LIVE_PRESETS[kind], cache, lambda collate, rows: collate(rows[::-1]), packing=packing)
    assert_same(alone(LIVE_PRESETS[kind], num_steps=3), turned)


def record_with_batches(folder: Path, objective: Objective, cache: TeacherCacheReader, batch_of: Any, **changes: Any) -> Recorded:
    """Three steps whose batches are made by `batch_of(collator, rows)`."""
    collate = TeacherCollator.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherCollator, "__call__", lambda self, rows: batch_of(lambda r: collate(self, r), rows))
        return record(folder, objective, cache, num_steps=3, **changes)


def test_a_row_of_one_token_is_selected_by_its_own_quantile_though_its_score_is_computed_twice() -> None:
    """The pass of the loss may differ from the survey that made the threshold in its last bit."""
    objective = replace(LIVE_PRESETS["uncertainty_aware"], scope="sequence")
    facts = TokenFacts(torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    weigher = TokenWeigher(objective, facts, ScoreThreshold(objective, None), distil_weight=1.0, selects=True)
    weigher.see_all(HeadStatistics(torch.tensor([4.0205269]), None))
    mle_weight_N, distil_weight_N = weigher(TokenChunk(slice(0, 1), torch.tensor([7]), torch.tensor([4.0205264]), None))
    assert mle_weight_N.tolist() == [1.0] and distil_weight_N.tolist() == [0.0]


def test_a_row_of_its_own_without_a_target_leaves_the_gradient_alone(tmp_path: Path, cache: TeacherCacheReader) -> None:
    empty = record(tmp_path, LIVE_PRESETS["uncertainty_aware"], cache, rows=[ROWS[NO_TARGET]] * 8, num_steps=2)
    for gradients in empty.gradients:
        assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients.values())
    initial = build_model().state_dict()
    assert all(torch.equal(weight, initial[name]) for name, weight in empty.weights.items())
    assert [line["loss"] for line in empty.curve] == [0.0, 0.0]


@pytest.mark.parametrize("kind", LIVE_PRESETS)
def test_an_empty_micro_batch_of_an_empty_step_is_a_zero_with_a_graph(
    tmp_path: Path, cache: TeacherCacheReader, kind: str
) -> None:
    trainer = build_trainer(tmp_path, LIVE_PRESETS[kind], cache)
    batch = trainer.data_collator([ROWS[NO_TARGET]])
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    assert all(gradient is not None and float(gradient.abs().max()) == 0.0 for gradient in gradients)


def test_a_student_equal_to_its_teacher_is_not_moved_by_distillation(tmp_path: Path, cache: TeacherCacheReader) -> None:
    """Distillation alone: no token is above a threshold beyond reach."""
    objective = replace(LIVE_PRESETS["uncertainty_aware"], threshold_nats=1e9)
    run = record(tmp_path, objective, cache, num_steps=1)
    scale = record(tmp_path, LIVE_PRESETS["sft"], cache, num_steps=1).curve[0]["grad_norm"]
    assert run.curve[0]["distillation_kl"] < 1e-6 and run.curve[0]["selected_fraction"] == 0.0
    assert run.curve[0]["grad_norm"] < 2e-3 * scale


def test_the_curves_are_means_over_targets_and_add_up(tmp_path: Path, cache: TeacherCacheReader) -> None:
    objective = replace(LIVE_PRESETS["uncertainty_aware"], distil_weight=0.3)
    for line in record(tmp_path, objective, cache, num_steps=6, log_every_steps=4).curve:
        assert line["loss"] == pytest.approx(line["likelihood_loss"] + 0.3 * line["distillation_kl"], rel=1e-6)
        assert line["masked_fraction"] == pytest.approx(1 - line["selected_fraction"])
        assert line["likelihood_loss"] <= line["nll"] and "threshold" in line


def test_the_last_step_is_always_logged_and_epochs_count_passes_over_the_data(tmp_path: Path, cache: TeacherCacheReader) -> None:
    short = record(tmp_path, LIVE_PRESETS["sft"], cache, num_steps=3, log_every_steps=10).curve
    assert [line["step"] for line in short] == [3]
    longer = record(tmp_path, LIVE_PRESETS["sft"], cache, num_steps=5, log_every_steps=2).curve
    assert [line["step"] for line in longer] == [2, 4, 5]
    assert [line["epoch"] for line in longer] == pytest.approx([16 / 20, 32 / 20, 40 / 20])


def test_random_masks_differ_between_steps_and_keep_their_fraction(tmp_path: Path, cache: TeacherCacheReader) -> None:
    run = record(tmp_path, replace(LIVE_PRESETS["random_mask"], keep=0.3), cache, num_steps=12, learning_rate=1e-6)
    fractions = [line["selected_fraction"] for line in run.curve]
    assert len(set(fractions)) > 6 and sum(fractions) / 12 == pytest.approx(0.3, abs=0.1)


def test_warmup_selects_everything_and_then_the_threshold_is_that_of_the_student_not_of_the_base(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    objective = replace(LIVE_PRESETS["masked_mle"], warmup_steps=10)
    run = record(tmp_path, objective, cache, num_steps=14)
    fractions = [line["selected_fraction"] for line in run.curve]
    assert fractions[:10] == [1.0] * 10
    assert all(0.2 < fraction < 0.8 for fraction in fractions[10:]), fractions
    assert run.curve[9]["threshold"] < run.curve[0]["threshold"]


def test_a_loss_that_is_not_finite_stops_the_training_and_names_its_row(tmp_path: Path, cache: TeacherCacheReader) -> None:
    rows = [row for row in ROWS if 49 not in row.input_ids and sum(row.is_target)]
    poisoned = next(row for row in ROWS if 49 in row.input_ids[:-2] and sum(row.is_target))
    model = build_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[49] = float("nan")
    for kind in ("sft", "uncertainty_aware"):
        trainer = build_trainer(
            tmp_path / kind, LIVE_PRESETS[kind], cache, model=model, rows=[*rows[:7], poisoned], num_steps=2, save_every_steps=1
        )
        with pytest.raises(TrainingError) as caught:
            trainer.train()
        message = str(caught.value)
        assert f"(first in row {poisoned.fingerprint};" in message and "step 0" in message
        assert all(row.fingerprint in message for row in rows[:7]), "the whole micro-batch can be found again"
        assert not list((tmp_path / kind).glob("checkpoint-*"))


def test_a_gradient_that_is_not_finite_stops_the_training_before_it_reaches_a_weight(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    trainer = build_trainer(tmp_path, LIVE_PRESETS["sft"], cache, num_steps=4, save_every_steps=1)
    calls = []

    def overflow(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * (float("inf") if len(calls) == 3 else 1.0)

    trainer.model.lm_head.weight.register_hook(overflow)
    with pytest.raises(TrainingError, match=r"gradient's norm is (nan|inf) at step 2.*learning_rate"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def test_steps_of_one_row_of_one_target_train(tmp_path: Path, cache: TeacherCacheReader) -> None:
    single = next(row for row in ROWS if sum(row.is_target) == 1)
    for kind in ("sft_kl", "uncertainty_aware", "random_mask"):
        run = record(tmp_path, LIVE_PRESETS[kind], cache, rows=[single], batch_size=1, micro_batch_size=1, num_steps=3)
        assert len(run.curve) == 3 and all(torch.isfinite(weight).all() for weight in run.weights.values()), kind
