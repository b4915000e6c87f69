"""Laws of cross-fitting: no member scores a row that it was trained on, a kill changes nothing, a fault is told."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.data.training_rows import count_targets
from components.errors import DataError, ModelError
from components.params import EarlyStoppingParams, TokenScoresParams, TrainingParams
from components.token_scores.rows import record_starts
from components.training import cross_fitting, reference_columns
from components.training.cross_fitting import member_training, plan_members, put_weights, train_members
from components.training.reference_columns import cross_fit_columns
from components.training.row_order import RowOrder
from tests.conftest import VOCABULARY, Row, build_model, build_rows, end_of_child, start_child

ROWS = build_rows(15)
CPU = torch.device("cpu")
OnStep = Callable[[int], None]


def params(num_members: int = 4, seed: int = 0) -> TokenScoresParams:
    return TokenScoresParams(reference="cross_fit", num_members=num_members, seed=seed)


def fine_tune(model: Any, rows: Sequence[Any], seed: int, work: Path, on_step: OnStep = lambda _: None) -> Any:
    """Stands in for the students' trainer: a few steps of plain cross-entropy in an order that the seed decides."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step, number in enumerate(RowOrder(len(rows), 12, seed)):
        on_step(step)
        row = rows[number]
        labels_T = torch.where(torch.tensor(row.is_target), torch.tensor(row.input_ids), -100)
        if not count_targets(row):
            continue
        logits_TV = model(torch.tensor([row.input_ids])).logits[0]
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits_TV[:-1], labels_T[1:]).backward()
        optimizer.step()
    return model


def run(
    work: Path, *, rows: Sequence[Row] = ROWS, train: Any = fine_tune, load: Any = build_model, **changes: Any
) -> dict[str, Tensor]:
    limits = {"law_bytes": changes.pop("law_bytes")} if "law_bytes" in changes else {}
    return cross_fit_columns(rows, params(**changes), load, train, "fp32", CPU, work, **limits)


# ---- the plan ----


@pytest.mark.parametrize("num_rows", [2, 15, 16])
@pytest.mark.parametrize("num_members", [2, 4, 6])
def test_the_halves_of_a_split_are_disjoint_cover_the_rows_and_are_of_one_size(num_rows: int, num_members: int) -> None:
    members = plan_members(ROWS[:num_rows] if num_rows < 16 else build_rows(16), num_members, 0)
    assert [member.number for member in members] == list(range(num_members))
    for one, other in zip(members[::2], members[1::2], strict=True):
        assert one.trained_on == other.held_out and other.trained_on == one.held_out
        assert sorted(one.trained_on + one.held_out) == list(range(num_rows))
        assert abs(len(one.trained_on) - len(one.held_out)) <= 1
    assert len({member.seed for member in members}) == num_members


def test_the_seed_alone_decides_the_plan_and_splits_differ() -> None:
    rows = build_rows(40)
    assert plan_members(rows, 6, 1) == plan_members(rows, 6, 1)
    assert plan_members(rows, 6, 1) != plan_members(rows, 6, 2)
    assert len({member.trained_on for member in plan_members(rows, 6, 1)}) == 6
    assert plan_members(rows, 6, 1)[:2] == plan_members(rows, 2, 1), "more members add splits, they change none"


def test_neither_half_is_left_without_a_target() -> None:
    silent = [Row(row.input_ids, [False] * len(row.input_ids)) for row in build_rows(20, seed=3)]
    rows = [*silent, *ROWS[:2]]
    for seed in range(20):
        for member in plan_members(rows, 2, seed):
            assert sum(count_targets(rows[number]) > 0 for number in member.trained_on) == 1


def test_fewer_than_two_rows_with_targets_are_refused_with_the_way_out() -> None:
    silent = Row([1, 2], [True, False])
    for rows in ([], [ROWS[0]], [ROWS[0], silent]):
        with pytest.raises(DataError, match=r"set token_scores\.reference: none"):
            plan_members(rows, 2, 0)


def test_the_same_row_on_both_sides_of_a_split_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="distinct"):
        plan_members([*ROWS, ROWS[0]], 2, 0)


def test_members_share_the_students_settings_but_for_their_steps_and_an_early_stop() -> None:
    students = TrainingParams(num_steps=300, learning_rate=0.002, early_stopping=EarlyStoppingParams(enabled=True))
    members = member_training(TokenScoresParams(reference="cross_fit", num_steps=70), students)
    assert members == TrainingParams(num_steps=70, learning_rate=0.002)


# ---- held out ----


class Memorising(nn.Module):
    """Knows the rows it was shown by heart and is uniform on all others; a row is known by its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.Parameter(torch.zeros(VOCABULARY))
        self.config = SimpleNamespace(vocab_size=VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        next_BTV = nn.functional.one_hot(input_ids.roll(-1, 1), VOCABULARY)
        return SimpleNamespace(logits=40 * self.known[input_ids[:, 0]][:, None, None] * next_BTV)


def memorise(model: Memorising, rows: Sequence[Row], seed: int, work: Path) -> Memorising:
    with torch.no_grad():
        model.known[torch.tensor([row.input_ids[0] for row in rows])] = 1
    return model


def rows_by_first_token(num_rows: int) -> list[Row]:
    tails = build_rows(num_rows, seed=5)
    return [Row([number + 1, *row.input_ids[1:]], row.is_target) for number, row in enumerate(tails)]


@pytest.mark.parametrize("num_members", [2, 4, 8])
@pytest.mark.parametrize("law_bytes", [1, 1 << 30])
def test_what_a_member_has_memorised_never_enters_a_score(tmp_path: Path, num_members: int, law_bytes: int) -> None:
    rows = rows_by_first_token(21)
    columns = run(tmp_path, rows=rows, train=memorise, load=Memorising, num_members=num_members, law_bytes=law_bytes)
    uniform_N = torch.full_like(columns["reference_nll"], VOCABULARY).log()
    torch.testing.assert_close(columns["reference_nll"], uniform_N)
    torch.testing.assert_close(columns["reference_entropy"], uniform_N)


def test_this_test_would_notice_a_member_that_scores_what_it_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_members

    def leaky(*arguments: Any) -> list[cross_fitting.Member]:
        return [cross_fitting.Member(m.number, m.seed, m.trained_on, m.trained_on) for m in plan(*arguments)]

    monkeypatch.setattr(reference_columns, "plan_members", leaky)
    assert run(tmp_path, rows=rows_by_first_token(21), train=memorise, load=Memorising)["reference_nll"].max() < 0.01


def test_every_row_is_scored_once_per_split_and_never_by_a_member_that_was_trained_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[tuple[int, ...]]] = []
    scored: list[tuple[int, tuple[int, ...]]] = []
    active = [-1]

    def train(model: Any, rows: Sequence[Row], seed: int, work: Path) -> Any:
        trained.append({tuple(row.input_ids) for row in rows})
        return fine_tune(model, rows, seed, work)

    def put(model: Any, file: Path) -> Any:
        active[0] = int(file.parent.name.removeprefix("member-"))
        return put_weights(model, file)

    def watch(model: Any, _: Any, keywords: dict[str, Any]) -> None:
        if "attention_mask" in keywords:
            for ids_T, present_T in zip(keywords["input_ids"], keywords["attention_mask"], strict=True):
                scored.append((active[0], tuple(ids_T[present_T.bool()].tolist())))

    def load() -> Any:
        model = build_model()
        model.register_forward_pre_hook(watch, with_kwargs=True)
        return model

    monkeypatch.setattr(reference_columns, "put_weights", put)
    run(tmp_path, train=train, load=load, num_members=6, law_bytes=4 * VOCABULARY * 30)
    assert len(trained) == 6 and len(scored) == 3 * len(ROWS)
    for member, ids in scored:
        assert ids not in trained[member]
    for row in ROWS:
        assert len({member // 2 for member, ids in scored if ids == tuple(row.input_ids)}) == 3


# ---- values ----


def literal(work: Path, num_members: int, seed: int = 0) -> dict[str, Tensor]:
    """Token by token, from the members' weights as they were kept."""
    members = plan_members(ROWS, num_members, seed)
    models = [put_weights(build_model(), work / f"member-{member.number}" / "model.safetensors").eval() for member in members]
    found: dict[str, list[float]] = {"reference_nll": [], "reference_entropy": [], "mutual_information": []}
    for number, row in enumerate(ROWS):
        judges = [model for model, member in zip(models, members, strict=True) if number not in member.trained_on]
        assert len(judges) == num_members // 2
        with torch.no_grad():
            laws = [model(torch.tensor([row.input_ids])).logits[0].double().softmax(1) for model in judges]
        for place in range(1, len(row.input_ids)):
            if not row.is_target[place]:
                continue
            each = [law[place - 1] for law in laws]
            mean = torch.stack(each).mean(0)
            entropies = [-float((law * law.log()).sum()) for law in (mean, *each)]
            found["reference_nll"].append(-float(mean[row.input_ids[place]].log()))
            found["reference_entropy"].append(entropies[0])
            found["mutual_information"].append(entropies[0] - sum(entropies[1:]) / len(each))
    return {name: torch.tensor(values) for name, values in found.items()}


@pytest.mark.parametrize("law_bytes", [1, 4 * VOCABULARY * 40, 1 << 30])
def test_columns_are_those_of_a_literal_loop_however_the_rows_are_cut_into_blocks(tmp_path: Path, law_bytes: int) -> None:
    columns = run(tmp_path, law_bytes=law_bytes)
    expected = literal(tmp_path, 4)
    assert columns.keys() == expected.keys()
    for name, values_N in expected.items():
        torch.testing.assert_close(columns[name], values_N, rtol=0, atol=2e-5)
    assert columns["mutual_information"].min() >= 0 and columns["mutual_information"].max() > 0.01
    assert len(columns["reference_nll"]) == record_starts(ROWS)[-1]


def test_two_members_leave_one_judge_per_token_and_no_mutual_information(tmp_path: Path) -> None:
    columns = run(tmp_path, num_members=2)
    assert columns.keys() == {"reference_nll", "reference_entropy"}
    expected = literal(tmp_path, 2)
    for name, values_N in columns.items():
        torch.testing.assert_close(values_N, expected[name], rtol=0, atol=2e-5)


def test_members_that_have_learned_nothing_give_the_base_s_loss_and_do_not_disagree(tmp_path: Path) -> None:
    columns = run(tmp_path, train=lambda model, rows, seed, work: model)
    with torch.no_grad():
        laws = [build_model()(torch.tensor([row.input_ids])).logits[0].log_softmax(1) for row in ROWS]
    nll = [
        -float(law[place - 1, row.input_ids[place]])
        for law, row in zip(laws, ROWS, strict=True)
        for place in range(1, len(row.input_ids))
        if row.is_target[place]
    ]
    torch.testing.assert_close(columns["reference_nll"], torch.tensor(nll), rtol=0, atol=1e-5)
    assert columns["mutual_information"].min() >= 0 and columns["mutual_information"].max() < 1e-5


def test_a_member_that_diverged_is_refused_with_a_row_and_what_to_lower(tmp_path: Path) -> None:
    def diverge(model: Any, rows: Sequence[Row], seed: int, work: Path) -> Any:
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
        return model

    with pytest.raises(ModelError, match=rf"not finite on row {ROWS[0].fingerprint}.*Lower training\.learning_rate"):
        run(tmp_path, train=diverge)


# ---- kills ----


def leave_bytes(folder: Path, columns: dict[str, Tensor]) -> bytes:
    save_file(columns, folder.with_suffix(".columns"))
    return folder.with_suffix(".columns").read_bytes()


def die(number: int, step: int) -> Any:
    """Train, and be killed in the middle of one member."""
    trained = [-1]

    def on_step(now: int) -> None:
        if trained[0] == number and now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def train(model: Any, rows: Sequence[Row], seed: int, work: Path) -> Any:
        trained[0] += 1
        return fine_tune(model, rows, seed, work, on_step)

    return train


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_run_killed_while_a_member_trains_goes_on_to_the_same_bytes(tmp_path: Path, number: int) -> None:
    whole = leave_bytes(tmp_path / "whole", run(tmp_path / "whole"))
    child = start_child(lambda: run(tmp_path / "resumed", train=die(number, 7)))
    assert end_of_child(child) == -signal.SIGKILL
    again: list[int] = []

    def train(model: Any, rows: Sequence[Row], seed: int, work: Path) -> Any:
        again.append(seed)
        return fine_tune(model, rows, seed, work)

    assert leave_bytes(tmp_path / "resumed", run(tmp_path / "resumed", train=train)) == whole
    assert again == [member.seed for member in plan_members(ROWS, 4, 0)][number:], "finished members are not trained again"


@pytest.mark.parametrize("num_loads", [1, 6, 10])
def test_a_run_killed_while_it_scores_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_loads: int
) -> None:
    blocks = {"law_bytes": 4 * VOCABULARY * 20}
    whole = leave_bytes(tmp_path / "whole", run(tmp_path / "whole", **blocks))
    loads = [0]

    def put(model: Any, file: Path) -> Any:
        loads[0] += 1
        if loads[0] == num_loads:
            os.kill(os.getpid(), signal.SIGKILL)
        return put_weights(model, file)

    with monkeypatch.context() as patched:
        patched.setattr(reference_columns, "put_weights", put)
        assert end_of_child(start_child(lambda: run(tmp_path / "resumed", **blocks))) == -signal.SIGKILL
    assert leave_bytes(tmp_path / "resumed", run(tmp_path / "resumed", train=None, **blocks)) == whole


def test_a_finished_member_or_block_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    whole = leave_bytes(tmp_path / "whole", run(tmp_path / "work"))
    for file in (tmp_path / "work/member-1/model.safetensors", *(tmp_path / "work").glob("block-*/columns.safetensors")):
        damaged = bytearray(file.read_bytes())
        damaged[-1] ^= 1
        file.write_bytes(damaged)
        assert leave_bytes(tmp_path / "again", run(tmp_path / "work")) == whole


def test_a_member_s_unfinished_work_is_its_own_and_is_gone_when_it_is_done(tmp_path: Path) -> None:
    folders = []

    def train(model: Any, rows: Sequence[Row], seed: int, work: Path) -> Any:
        work.mkdir()
        (work / "checkpoint").write_text("half way")
        folders.append(work)
        return model

    members = plan_members(ROWS, 4, 0)
    files = train_members(members, ROWS, build_model, train, tmp_path)
    assert len(set(folders)) == 4 and not any(folder.exists() for folder in folders)
    assert sorted(load_file(files[0])) == sorted(load_file(files[3]))
