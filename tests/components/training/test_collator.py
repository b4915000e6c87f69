"""Laws of the micro-batch: the teacher's columns stand beside their own tokens, whatever the company and the order of rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from components.data.training_rows import count_targets
from components.errors import CacheMismatchError
from components.teacher_cache.reader import TeacherCacheReader
from components.training.collator import TEACHER_COLUMNS, TeacherCollator
from tests.components.training.conftest import NO_TARGET, ROWS
from tests.conftest import PAD, Row, build_cache, build_model


def test_each_target_has_the_columns_of_its_own_position(cache: TeacherCacheReader) -> None:
    batch = TeacherCollator(PAD, cache)(ROWS)
    with torch.no_grad():
        logits = build_model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    is_target = batch["labels"][:, 1:] != -100
    nll_N = torch.nn.functional.cross_entropy(logits[is_target], batch["labels"][:, 1:][is_target], reduction="none")
    torch.testing.assert_close(batch["teacher_label_logprob"], -nll_N, rtol=0, atol=1e-5)
    assert torch.equal(batch["teacher_entry_ids"][:, 0].long(), logits[is_target].argmax(1))
    assert len(batch["teacher_entry_ids"]) == sum(count_targets(row) for row in ROWS)


def test_a_rows_columns_do_not_depend_on_its_company(cache: TeacherCacheReader) -> None:
    collate = TeacherCollator(PAD, cache)
    together = collate(ROWS[::-1])
    alone = [collate([row]) for row in ROWS[::-1]]
    for name in ("tail_logprob", "label_logprob"):
        assert torch.equal(together[f"teacher_{name}"], torch.cat([batch[f"teacher_{name}"] for batch in alone]))
    for name in ("entry_ids", "entry_logprobs"):  # as wide as the widest of their company; what is beyond a token's own is empty
        start = 0
        for batch in alone:
            own = batch[f"teacher_{name}"]
            part = together[f"teacher_{name}"][start : start + len(own)]
            assert torch.equal(part[:, : own.shape[1]], own)
            start += len(own)
            assert (together["teacher_entry_logprobs"][start - len(own) : start, own.shape[1] :] == -torch.inf).all()


def test_rows_are_padded_on_the_right_and_padding_is_no_target(cache: TeacherCacheReader) -> None:
    batch = TeacherCollator(7, cache)(ROWS[:5])
    for index, row in enumerate(ROWS[:5]):
        length = len(row.input_ids)
        assert batch["input_ids"][index, :length].tolist() == row.input_ids
        assert (batch["input_ids"][index, length:] == 7).all()
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        expected = [token if is_target else -100 for token, is_target in zip(row.input_ids, row.is_target, strict=True)]
        assert batch["labels"][index].tolist() == expected + [-100] * (batch["input_ids"].shape[1] - length)


def test_a_row_without_targets_gives_empty_columns(cache: TeacherCacheReader) -> None:
    batch = TeacherCollator(PAD, cache)([ROWS[NO_TARGET]])
    assert all(len(batch[f"teacher_{name}"]) == 0 for name in TEACHER_COLUMNS)
    assert (batch["labels"] == -100).all()


def test_a_first_token_marked_as_target_shifts_nothing(tmp_path: Path) -> None:
    odd = Row([3, 4, 5, 6], [True] * 4)
    batch = TeacherCollator(PAD, build_cache(tmp_path, build_model(), [odd, ROWS[0]]))([odd, ROWS[0]])
    assert len(batch["teacher_label_logprob"]) == 3 + count_targets(ROWS[0]) == int((batch["labels"][:, 1:] != -100).sum())


def test_a_changed_token_or_target_mark_is_refused(cache: TeacherCacheReader) -> None:
    row = ROWS[0]
    other_token = replace(row, input_ids=[*row.input_ids[:-1], row.input_ids[-1] + 1])
    other_target = replace(row, is_target=[*row.is_target[:-1], False])
    for changed in (other_token, other_target):
        with pytest.raises(CacheMismatchError, match="dvc repro cache_teacher"):
            TeacherCollator(PAD, cache)([changed])


def test_without_a_cache_there_are_no_teacher_columns() -> None:
    assert set(TeacherCollator(PAD, None)(ROWS)) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("packing", [False, True])
def test_several_workers_read_at_once_what_one_reads(cache: TeacherCacheReader, packing: bool) -> None:
    collate = TeacherCollator(PAD, cache, packing=packing)
    order = [row for row in ROWS for _ in range(3)][::-1]
    batches = [
        list(DataLoader(order, batch_size=7, num_workers=num_workers, collate_fn=collate))
        for num_workers in (0, 2)  # type: ignore[arg-type]
    ]
    assert len(batches[0]) == len(batches[1]) > 5
    for one, other in zip(*batches, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
