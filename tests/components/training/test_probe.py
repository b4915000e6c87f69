"""Laws of the probe: its record is that of the moment, survives a resume, and the training never notices it."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.data.tokenized import TokenizedRow
from components.data.training_rows import count_targets
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.sparse_target import TeacherTargets
from components.params import LoraParams, ProbeParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.lora import add_adapter
from components.training.probe import TrainingProbe
from components.training.probe_record import ProbeRow
from tests.components.training.conftest import CLASS_OF_TOKEN, ROWS, build_trainer
from tests.conftest import PAD, VOCABULARY, Row, build_model

OURS = PRESETS["uncertainty_aware"]
SETTINGS = ProbeParams(every_steps=2, num_rows=8, num_examples=2)


def probe_row(number: int, row: Row, cache: TeacherCacheReader) -> ProbeRow:
    """What the stage would know of a row; every third one has true laws."""
    labels = torch.tensor([token for token, target in zip(row.input_ids, row.is_target, strict=True) if target], dtype=torch.long)
    record = cache.read_targets(row.fingerprint, row.is_target)
    teacher = TeacherTargets(record["entry_ids"], record["entry_logprobs"], record["tail_logprob"], record["label_logprob"])
    laws = [{int(label): 0.5, 1: 0.5} if label > 25 else {int(label): 1.0} for label in labels]
    return ProbeRow(
        f"row {number}",
        row.input_ids,
        row.is_target,
        CLASS_OF_TOKEN[labels],
        texts=[f"<{token}>" for token in row.input_ids],
        laws=laws if number % 3 == 0 else None,
        teacher_logprob_N=record["label_logprob"],
        teacher=teacher,
    )


def build_probe(
    cache: TeacherCacheReader,
    objective: Objective = OURS,
    threshold: Callable[[], float | None] = lambda: 2.0,
    **changes: Any,
) -> TrainingProbe:
    rows = [probe_row(number, row, cache) for number, row in enumerate(ROWS[:8])]
    validation = [probe_row(number, row, cache) for number, row in enumerate(ROWS[10:14])]
    given = {"name": "ours", "threshold": threshold, "params": SETTINGS, "pad_token_id": PAD, **changes}
    return TrainingProbe(objective, rows, validation, **given)


def stay(probe: TrainingProbe, *steps: int, num_steps: int = 100, **given: Any) -> TrainingProbe:
    """Look at models that change with the step, as if they were trained."""
    for step in steps:
        probe.look(build_model(seed=step), step=step, epoch=step / 10, num_steps=num_steps, **given)
    return probe


# --- what is recorded -----------------------------------------------------------------------------------------------


def test_a_look_records_the_moment(cache: TeacherCacheReader) -> None:
    record = stay(build_probe(cache), 0, 20).record()
    json.dumps(record, allow_nan=False)
    assert (record["score"], record["select"], record["truth"], record["num_rows"]) == ("student_nll", "high", "law", 8)
    assert record["num_tokens"] == sum(count_targets(row) for row in ROWS[:8])
    first, second = record["steps"]
    assert (first["step"], first["epoch"], first["threshold"]) == (0, 0.0, 2.0)
    assert [first[name] for name in ("entered", "left", "jaccard", "jaccard_epoch")] == [None] * 4
    assert second["jaccard"] == second["jaccard_epoch"] and 0 < second["jaccard"] < 1
    assert first["kl_to_teacher"] == pytest.approx(0.0, abs=1e-4), "the model of seed 0 is the teacher"
    assert second["kl_to_teacher"] > 0.1
    assert set(first["scores"]) == {"student_nll", "entropy", "teacher_nll"}
    assert first["scores"]["student_nll"] == first["scores"]["teacher_nll"]
    assert sum(first["mask"][f"{kind}_share"] for kind in ("epistemic", "known", "noise")) == pytest.approx(1, abs=1e-5)
    assert set(first["validation"]) == {"nll", "ece", "brier", "aurc"}
    num_selected = round(first["selected_fraction"] * record["num_tokens"])
    moved = round(second["selected_fraction"] * record["num_tokens"]) - num_selected
    assert second["entered"] - second["left"] == moved
    for name, entry in first["classes"].items():
        assert entry["mean_teacher_nll"] == pytest.approx(entry["mean_student_nll"], abs=1e-4), name
    assert sum(entry["num_tokens"] for entry in first["classes"].values()) == record["num_tokens"]


def test_the_examples_are_shown_token_by_token(cache: TeacherCacheReader) -> None:
    record = stay(build_probe(cache), 0, 20).record()
    assert [example["row_id"] for example in record["examples"]] == ["row 0", "row 1"]
    model = build_model(seed=20).eval()
    for example, row in zip(record["examples"], ROWS, strict=False):
        assert [token["text"] for token in example["tokens"]] == [f"<{token}>" for token in row.input_ids]
        num_targets = sum(token["is_target"] for token in example["tokens"])
        assert num_targets == count_targets(row) == len(example["classes"]) == len(example["teacher_nll"])
        shown = example["steps"][1]
        with torch.no_grad():
            logprobs_TV = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(1)
        positions = [position for position, target in enumerate(row.is_target) if target]
        nll = [-float(logprobs_TV[position - 1, row.input_ids[position]]) for position in positions]
        assert shown["step"] == 20 and shown["student_nll"] == pytest.approx(nll, abs=1e-4)
        assert shown["selected"] == [value >= 2.0 for value in nll]
        assert shown["mle_weight"] == [float(value >= 2.0) for value in nll]
        assert shown["distil_weight"] == [float(value < 2.0) for value in nll]
        assert shown["score"] == shown["student_nll"]


def test_a_row_of_the_prepared_data_can_be_looked_at(cache: TeacherCacheReader) -> None:
    row = TokenizedRow("a", "file", "alpaca", "f", [1, 2, 3], [False, True, True], '[{"2": 1.0}, {"3": 0.5, "4": 0.5}]')
    seen = ProbeRow(row.row_id, row.input_ids, row.is_target, torch.zeros(2, dtype=torch.int8), laws=row.true_laws())
    probe = TrainingProbe(OURS, [seen], [], name="ours", threshold=lambda: None, params=SETTINGS, pad_token_id=PAD)
    probe.look(build_model(), step=0, epoch=0.0, num_steps=10)
    record = probe.record()
    assert record["truth"] == "law" and record["steps"][0]["selected_fraction"] == 1.0
    assert record["steps"][0]["validation"] is None and record["steps"][0]["kl_to_teacher"] is None
    assert record["examples"][0]["teacher_nll"] is None
    assert [token["text"] for token in record["examples"][0]["tokens"]] == ["1", "2", "3"]


@pytest.mark.parametrize("name", [*PRESETS])
def test_every_preset_can_be_looked_at(name: str, cache: TeacherCacheReader) -> None:
    probe = build_probe(cache, PRESETS[name])
    for row in (rows := probe._rows):
        rows[rows.index(row)] = replace(row, columns={"reference_nll": torch.rand(count_targets(row))})
    probe = TrainingProbe(PRESETS[name], rows, [], name=name, threshold=lambda: 2.0, params=SETTINGS, pad_token_id=PAD)
    record = stay(probe, 0, 2).record()
    json.dumps(record, allow_nan=False)
    if PRESETS[name].select == "all":
        assert [step["selected_fraction"] for step in record["steps"]] == [1.0, 1.0]


def test_no_row_and_no_validation_record_nothing() -> None:
    probe = TrainingProbe(OURS, [], [], name="ours", threshold=lambda: 1.0, params=SETTINGS, pad_token_id=PAD)
    record = stay(probe, 0).record()
    assert record["steps"] == record["examples"] == record["warnings"] == [] and record["num_tokens"] == 0


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_resumed_record_equals_an_uninterrupted_one(stopped_after: int, cache: TeacherCacheReader) -> None:
    steps = (0, 5, 12, 20)
    for objective in (OURS, PRESETS["random_mask"]):
        whole = stay(build_probe(cache, objective), *steps, num_steps=20)
        first = stay(build_probe(cache, objective), *steps[:stopped_after], num_steps=20)
        second = build_probe(cache, objective)
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        stay(second, *steps[stopped_after - 1 :], num_steps=20)  # the step of the checkpoint is not looked at again
        assert json.dumps(second.record()) == json.dumps(whole.record())


def test_later_looks_do_not_reach_into_a_state_already_taken(cache: TeacherCacheReader) -> None:
    probe = stay(build_probe(cache), 0)
    other = build_probe(cache)
    other.load_state_dict(probe.state_dict())
    stay(probe, 5)
    assert len(other.record()["steps"]) == 1 and len(other.record()["examples"][0]["steps"]) == 1


# --- beside the real Trainer ----------------------------------------------------------------------------------------


def train(folder: Path, cache: TeacherCacheReader, with_probe: bool, **changes: Any) -> tuple[dict[str, Tensor], Any, list[Any]]:
    """Dropout is on, so that a stray random number would show."""
    trainer = build_trainer(folder, OURS, cache, model=build_model(attention_dropout=0.3), num_steps=5, **changes)
    probe = build_probe(cache, threshold=trainer.threshold.current)
    if with_probe:
        trainer.add_callback(probe)
    trainer.train()
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return weights, probe.record(), [line for line in trainer.state.log_history if "loss" in line]


def test_the_training_never_notices_and_the_looks_are_first_every_so_often_and_last(
    cache: TeacherCacheReader, tmp_path: Path
) -> None:
    without, nothing, curve = train(tmp_path / "without", cache, False)
    with_probe, record, other_curve = train(tmp_path / "with", cache, True)
    assert nothing["steps"] == []
    assert [step["step"] for step in record["steps"]] == [0, 2, 4, 5]
    assert [step["epoch"] for step in record["steps"]] == pytest.approx([0, 0.8, 1.6, 2.0])
    for name, value in without.items():
        assert torch.equal(value, with_probe[name]), name
    assert [line["loss"] for line in curve] == [line["loss"] for line in other_curve]
    thresholds = [step["threshold"] for step in record["steps"]]
    assert len(set(thresholds)) == 4, "the threshold in force after each step, which moves"


def test_dropout_members_leave_no_trace_in_the_training_either(cache: TeacherCacheReader, tmp_path: Path) -> None:
    """Dropout is on in the training too: one draw more or less would show in every weight."""

    def run(folder: Path, num_members: int) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(0)
        student = add_adapter(build_model(), LoraParams(enabled=True, rank=4, dropout=0.3))
        trainer = build_trainer(folder, OURS, cache, model=student, num_steps=4)
        params = SETTINGS.model_copy(update={"num_dropout_members": num_members})
        probe = build_probe(cache, threshold=trainer.threshold.current, params=params)
        trainer.add_callback(probe)
        trainer.train()
        return {name: value.detach().clone() for name, value in student.state_dict().items()}, probe.record()

    (without, nothing), (weights, record) = run(tmp_path / "without", 0), run(tmp_path / "with", 3)
    assert all(torch.equal(value, weights[name]) for name, value in without.items())
    assert [step["mean_dropout_information"] for step in nothing["steps"]] == [None] * 3
    assert "dropout_information" not in nothing["steps"][0]["scores"]
    means = [step["mean_dropout_information"] for step in record["steps"]]
    assert means[0] == pytest.approx(0, abs=1e-6) and means[-1] > 1e-5, "a new adapter adds nothing, dropped or not"
    rho = record["steps"][-1]["scores"]["dropout_information"]
    assert rho["epistemic"] is not None and rho["aleatoric"] is not None
    assert {**record["steps"][-1]["scores"]["student_nll"]} == nothing["steps"][-1]["scores"]["student_nll"]


def test_the_mask_that_is_recorded_is_the_one_that_is_trained_with(cache: TeacherCacheReader, tmp_path: Path) -> None:
    """All rows in every step, nothing learned: the step's own mask must be the one that the look foresaw."""
    rows = ROWS[:8]
    trainer = build_trainer(tmp_path, OURS, cache, rows=rows, num_steps=2, learning_rate=1e-12, batch_size=8, micro_batch_size=8)
    probe = build_probe(cache, threshold=trainer.threshold.current)
    trainer.add_callback(probe)
    trainer.train()
    logged = [line["selected_fraction"] for line in trainer.state.log_history if "selected_fraction" in line]
    assert probe.record()["steps"][0]["selected_fraction"] == pytest.approx(logged[0])


def test_other_ranks_look_along_and_record_nothing(cache: TeacherCacheReader) -> None:
    passes: list[int] = []
    probe = build_probe(cache)
    model = build_model()
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    probe.look(model, step=0, epoch=0.0, num_steps=10, is_recorder=False)
    assert passes, "the weights of a sharded model are gathered by all ranks together"
    assert probe.record()["steps"] == []
    num_passes = len(passes)
    probe.look(model, step=0, epoch=0.0, num_steps=10, is_recorder=False)
    assert len(passes) == num_passes, "and they agree on what has been looked at"


def test_the_returned_model_is_looked_at_unless_its_step_was(cache: TeacherCacheReader) -> None:
    sent: list[tuple[int, set[str]]] = []
    probe = stay(build_probe(cache, sink=lambda step, values: sent.append((step, set(values)))), 0, 20, num_steps=20)
    assert probe.record()["returned"] is None
    before = json.dumps(probe.state_dict())
    probe.look_at_returned(build_model(seed=20), step=20, epoch=2.0, num_steps=20)
    assert probe.record()["returned"] == probe.record()["steps"][-1] and len(sent) == 2
    probe.look_at_returned(build_model(seed=12), step=12, epoch=1.2, num_steps=20)
    returned, literal = probe.record()["returned"], stay(build_probe(cache), 12).record()["steps"][0]
    assert returned == literal and returned["step"] == 12 and returned["jaccard"] is None
    assert json.dumps(probe.state_dict()) == before and len(probe.record()["steps"]) == 2
    assert sent[-1][0] == 12 and "probe_returned/kl_to_teacher" in sent[-1][1]


def test_ranks_agree_on_whether_the_returned_model_has_been_looked_at(cache: TeacherCacheReader) -> None:
    other = stay(build_probe(cache), 0, 20, is_recorder=False)
    model, passes = build_model(), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    other.look_at_returned(model, step=20, epoch=2.0, num_steps=20, is_recorder=False)
    assert not passes
    other.look_at_returned(model, step=12, epoch=1.2, num_steps=20, is_recorder=False)
    assert passes and other.record()["returned"] is None


# --- warnings, in a world whose truth is known -----------------------------------------------------------------------


class TableStudent(nn.Module):
    """Its law depends on the last token alone: the head's rows are the logits. Known to be this sure of each."""

    def __init__(self, table_VV: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(len(table_VV), len(table_VV), bias=False)
        self.head.weight.data = table_VV.T.contiguous()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        hidden_BTV = nn.functional.one_hot(input_ids, self.head.in_features).float()
        return SimpleNamespace(logits=self.head(hidden_BTV))


COIN, NUM_COINS, SKILLS = 1, 6, range(2, 12)
"""After token 1 comes 20 or 21 by chance; after token n of SKILLS comes n + 20."""
NOISE = NUM_COINS / (NUM_COINS + len(SKILLS))


def world_row(number: int) -> ProbeRow:
    """Coins, then one skill after the other; the class of the first five skills is end_of_turn."""
    ids = [token for toss in range(NUM_COINS) for token in (COIN, 20 + (number + toss) % 2)]
    laws = [{20: 0.5, 21: 0.5}] * NUM_COINS
    for skill in SKILLS:
        ids += [skill, skill + 20]
        laws.append({skill + 20: 1.0})
    is_target = [position % 2 == 1 for position in range(len(ids))]
    class_N = torch.tensor([*[4] * NUM_COINS, *[0] * 5, *[4] * 5], dtype=torch.int8)
    return ProbeRow(f"row {number}", ids, is_target, class_N, laws=laws)


def student(skill: float) -> TableStudent:
    """Knows the coins from the start and its skills by this much (in logits), each a little more than the one before."""
    table_VV = torch.zeros(VOCABULARY, VOCABULARY)
    table_VV[COIN, [20, 21]] = 30.0
    for number, token in enumerate(SKILLS):
        table_VV[token, token + 20] = skill + 0.1 * number
    return TableStudent(table_VV)


def world_probe(objective: Objective, threshold: float | None) -> TrainingProbe:
    rows = [world_row(number) for number in range(4)]
    return TrainingProbe(objective, rows, rows, name="ours", threshold=lambda: threshold, params=SETTINGS, pad_token_id=PAD)


def learn(probe: TrainingProbe, *skills: float) -> None:
    for number, skill in enumerate(skills):
        probe.look(student(skill), step=10 * number, epoch=float(number), num_steps=10 * (len(skills) - 1))


def test_the_moment_when_the_mask_stops_following_what_can_be_learned_is_told(caplog: pytest.LogCaptureFixture) -> None:
    probe = world_probe(replace(OURS, distil_on="none"), 0.5)
    with caplog.at_level(logging.WARNING):
        learn(probe, 0.0, 3.0, 9.0, 12.0)
    record = probe.record()
    rhos = [step["scores"]["student_nll"] for step in record["steps"]]
    assert [rho["epistemic"] > rho["aleatoric"] for rho in rhos] == [True, True, False, False]
    assert [step["mask"]["noise_share"] for step in record["steps"]] == pytest.approx([NOISE, NOISE, 1.0, 1.0])
    assert [step["mask"]["epistemic_coverage"] for step in record["steps"]] == [1.0, 1.0, None, None]
    follows = [warning for warning in record["warnings"] if warning["kind"] == "follows_noise"]
    assert [warning["step"] for warning in follows] == [20]
    said = [entry.message for entry in caplog.records if "follows noise" in entry.message]
    assert said == [follows[0]["message"]], "once, in the same words"


def test_a_class_that_the_mask_forgets_is_told_once_and_not_again_after_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    objective = replace(OURS, distil_on="none")
    probe = world_probe(objective, 0.5)
    with caplog.at_level(logging.WARNING):
        learn(probe, 0.0, 9.0, 9.5)
    [warning] = [one for one in probe.record()["warnings"] if one["kind"] == "weight_collapse"]
    assert warning["step"] == 10 and "end_of_turn" in warning["message"] and "not distilled" in warning["message"]
    assert sum("end_of_turn" in entry.message for entry in caplog.records) == 1
    resumed = world_probe(objective, 0.5)
    resumed.load_state_dict(json.loads(json.dumps(probe.state_dict())))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        resumed.look(student(10.0), step=30, epoch=3.0, num_steps=40)
    assert not caplog.records


def test_distillation_holds_what_the_mask_leaves_out_and_nobody_is_alarmed() -> None:
    probe = world_probe(OURS, 0.5)
    learn(probe, 0.0, 9.0, 9.5)
    assert [one for one in probe.record()["warnings"] if one["kind"] == "weight_collapse"] == []


def test_a_protected_class_keeps_its_weight() -> None:
    probe = world_probe(replace(OURS, distil_on="none", protect=("end_of_turn",)), 0.5)
    learn(probe, 0.0, 9.0, 9.5)
    record = probe.record()
    assert [step["classes"]["end_of_turn"]["mean_mle_weight"] for step in record["steps"]] == [1.0, 1.0, 1.0]
    assert [one for one in record["warnings"] if one["kind"] == "weight_collapse"] == []


def test_figures_of_a_student_that_knows_all_but_how_the_coins_fall() -> None:
    probe = world_probe(OURS, 0.5)
    learn(probe, 40.0)
    step = probe.record()["steps"][0]
    assert step["validation"]["nll"] == pytest.approx(NOISE * math.log(2), abs=1e-5)
    assert step["validation"]["brier"] == pytest.approx(NOISE / 2, abs=1e-5)
    assert step["selected_fraction"] == pytest.approx(NOISE)
