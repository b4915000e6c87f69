"""Cross-fitted members: students trained on one half of the rows, so that they can score the other half without having seen it.

The rows are split into random halves, num_members / 2 times; each half of each split trains one member from the base. A row is
then scored by the num_members / 2 members that were trained on the other half of each split: what a member has memorised of a row
never enters the row's own score (cross-fitting: Chernozhukov et al. 2018, arXiv 1608.00060).

A row is its fingerprint (token ids and target marks): the same one twice counts once and is never on both sides of a split. Rows
that say the same in other words are different rows here, so near-duplicates across the halves leak; deduplicate the data before.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model, save_model

from components.artifacts import fingerprint_json
from components.data.training_rows import TrainingRow, count_targets
from components.errors import DataError
from components.objectives.presets import PRESETS
from components.params import EarlyStoppingParams, TokenScoresParams, TrainingParams
from components.training.checkpoints import is_sealed, seal_checkpoint
from components.training.post_train import post_train_model
from components.uncertainty.selection import keyed_generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LoadBase = Callable[[], "PreTrainedModel"]
TrainMember = Callable[["PreTrainedModel", Sequence[TrainingRow], int, Path], "PreTrainedModel"]
"""Takes a fresh base, the rows, a seed and a work folder of its own (unfinished work there is gone on with)."""
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Member:
    """One student: numbers of the rows it was trained on and of those it may score, both ascending."""

    number: int
    seed: int
    trained_on: tuple[int, ...]
    held_out: tuple[int, ...]


def plan_members(rows: Sequence[TrainingRow], num_members: int, seed: int) -> list[Member]:
    """Two members per split, whose rows are each other's held-out ones; `rows` are distinct."""
    assert len({row.fingerprint for row in rows}) == len(rows), "rows are distinct"
    if sum(count_targets(row) > 0 for row in rows) < 2:
        raise DataError(
            f"{len(rows)} training rows cannot be split into two halves that both have target tokens. Give more data, or set "
            "token_scores.reference: none"
        )
    members = []
    for split in range(num_members // 2):
        halves = _halves(rows, seed, split)
        for half, other in ((0, 1), (1, 0)):
            member_seed = int(fingerprint_json(["member", seed, split, half])[:8], 16)
            members.append(Member(2 * split + half, member_seed, halves[half], halves[other]))
    return members


def _halves(rows: Sequence[TrainingRow], seed: int, split: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A random half of the rows that have targets, and of those that have none: neither half is left without a target."""
    halves: tuple[list[int], list[int]] = ([], [])
    for kind, numbers in enumerate(_by_having_targets(rows)):
        order = torch.randperm(len(numbers), generator=keyed_generator(seed, split, kind)).tolist()
        middle = len(numbers) // 2
        halves[0].extend(numbers[place] for place in order[:middle])
        halves[1].extend(numbers[place] for place in order[middle:])
    return tuple(sorted(halves[0])), tuple(sorted(halves[1]))


def _by_having_targets(rows: Sequence[TrainingRow]) -> tuple[list[int], list[int]]:
    with_targets = [number for number, row in enumerate(rows) if count_targets(row)]
    return with_targets, [number for number, row in enumerate(rows) if not count_targets(row)]


def train_members(
    members: Sequence[Member], rows: Sequence[TrainingRow], load_base: LoadBase, train_member: TrainMember, work: Path
) -> list[Path]:
    """Weights of every member, in files under `work`; a finished one is not trained again. One model in memory at a time."""
    files = []
    for member in members:
        folder = work / f"member-{member.number}"
        if not is_sealed(folder):
            shutil.rmtree(folder, ignore_errors=True)
            own_work = work / f"member_{member.number + 1}_of_{len(members)}-work"  # what its progress lines are called
            model = train_member(load_base(), [rows[number] for number in member.trained_on], member.seed, own_work)
            folder.mkdir(parents=True)
            save_model(model, str(folder / WEIGHTS))
            del model
            seal_checkpoint(folder)
            shutil.rmtree(own_work, ignore_errors=True)
        files.append(folder / WEIGHTS)
    return files


def put_weights(model: Any, file: Path) -> Any:
    """The same model with the weights of a member."""
    load_model(model, file)
    return model


def member_training(params: TokenScoresParams, training: TrainingParams) -> TrainingParams:
    """The students' settings with the members' number of steps; nothing is held out to stop early by."""
    return training.model_copy(update={"num_steps": params.num_steps, "early_stopping": EarlyStoppingParams()})


def plain_fine_tuning(training: TrainingParams, device: torch.device, pad_token_id: int) -> TrainMember:
    """Members by the students' own trainer, with cross-entropy on every target token."""

    def train_member(model: "PreTrainedModel", rows: Sequence[TrainingRow], seed: int, work: Path) -> "PreTrainedModel":
        return post_train_model(
            model,
            rows,
            None,
            PRESETS["sft"],
            training,
            seed=seed,
            device=device,
            pad_token_id=pad_token_id,
            work=work,
            sink=lambda step, values: None,
        ).model

    return train_member
