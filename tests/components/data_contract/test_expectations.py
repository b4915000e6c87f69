"""Laws of the run: one block and many give equal reports, a crash is no verdict, and nothing is sent, kept or passed over."""

import gc
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas
import pytest

from components.data_contract.check import Between, Suite
from components.data_contract.expectations import MAX_NAMED_ROWS, CrashedExpectationError, _Validator, validate
from components.data_contract.raw_checks import raw_rows
from components.data_contract.tokenised_checks import prepared_rows
from components.errors import BallastError, DataError


def messy_rows(judge: Any) -> list[dict[str, Any]]:
    rows = judge.with_broken(judge.raw_rows(130), *range(3, 130, 3), num_encoding_faults=1)
    rows = judge.with_broken(rows, *range(5, 130, 40), fault_kind="role_order", split="")
    rows = judge.with_broken(rows, 129, repeats_row="train.json:4", ood_overlap="arc", answer_is_well_formed=False)
    return judge.with_broken(rows, 60, fault_kind="secret", num_secrets=2)


@pytest.mark.parametrize("block_rows", [19, 50, 129, 130])
def test_one_block_and_many_give_equal_reports(judge: Any, block_rows: int) -> None:
    rows = messy_rows(judge)
    whole, parts = judge.raw(rows), judge.raw(rows, block_rows)
    assert parts == whole and parts.evidence == whole.evidence
    assert len(whole.failures()) > 5


@pytest.mark.parametrize("block_rows", [7, 39, 40])
def test_one_block_and_many_of_tokens_give_equal_reports(judge: Any, block_rows: int) -> None:
    rows = judge.with_broken(judge.tokenised_rows(), *range(5, 40, 3), num_turns_cut=1, num_target_tokens=0)
    whole, parts = judge.tokenised(rows), judge.tokenised(rows, block_rows)
    assert parts == whole and parts.evidence == whole.evidence
    assert judge.names(whole) == ["target_tokens_in_range", "few_rows_cut"]


def test_an_empty_block_among_others_changes_nothing(judge: Any) -> None:
    rows = messy_rows(judge)
    frames = [judge.frame([], judge.RAW), *judge.blocks(rows, judge.RAW, 70), judge.frame([], judge.RAW)]
    assert validate(frames, raw_rows(judge.limits())) == judge.raw(rows)


@pytest.mark.parametrize("num_found", [0, 2, 3, 40])
def test_the_verdict_of_one_block_is_that_of_great_expectations(judge: Any, num_found: int) -> None:
    from great_expectations.expectations import ExpectColumnValuesToBeBetween

    suite = raw_rows(judge.limits(max_encoding_fraction=0.05))
    rows = judge.with_broken(judge.raw_rows(), *range(num_found), num_encoding_faults=1) if num_found else judge.raw_rows()
    frame = judge.frame(rows, judge.RAW)
    theirs = (
        _Validator(suite)
        ._batch.get_batch({"dataframe": frame})
        .validate(ExpectColumnValuesToBeBetween(column="num_encoding_faults", min_value=0, max_value=0, mostly=0.95))
    )
    [ours] = [one for one in validate([frame], suite).outcomes if one.name == "few_encoding_faults"]
    assert ours.success == theirs.success == (num_found <= 2)


def test_at_most_twenty_rows_are_named_and_all_are_counted(judge: Any) -> None:
    rows = [row | {"num_secrets": 1} for row in judge.raw_rows(50)]
    [failure] = judge.raw(rows, 12).failures()
    assert failure.unexpected_rows == tuple(f"train.json:{index}" for index in range(MAX_NAMED_ROWS))
    assert (failure.num_unexpected, failure.unexpected_percent) == (50, 100.0)


def test_rows_of_one_id_are_both_judged(judge: Any) -> None:
    rows = [row | {"row_id": "same:1", "num_secrets": 1} for row in judge.raw_rows(3)]
    [failure] = judge.raw(rows).failures()
    assert failure.unexpected_rows == ("same:1",) * 3


@pytest.mark.parametrize("dtype", ["object", "category"])
def test_strings_may_be_objects_or_categories(judge: Any, dtype: str) -> None:
    rows = messy_rows(judge)
    frame = judge.frame(rows, judge.RAW)
    names = [name for name in frame.columns if frame[name].dtype == "str" and (dtype == "object" or name in ("source", "schema"))]
    assert validate([frame.astype(dict.fromkeys(names, dtype))], raw_rows(judge.limits())) == judge.raw(rows)


def broken_suite(judge: Any, **changes: Any) -> Suite:
    suite = prepared_rows(judge.limits(), judge.DATA)
    return replace(suite, checks=tuple(replace(one, **changes) if one.name == "rows_fit" else one for one in suite.checks))


@pytest.mark.parametrize("broken", ["column", "type"])
def test_a_crashed_expectation_is_an_error_of_ours_and_not_of_the_data(judge: Any, broken: str) -> None:
    frame = judge.frame(judge.tokenised_rows(), judge.TOKENISED)
    suite = broken_suite(judge, column="no_such_column" if broken == "column" else "source", expected=Between(0, 64))
    with pytest.raises(CrashedExpectationError, match=r"'rows_fit' crashed, so nothing is known .*Error") as raised:
        validate([frame], suite)
    assert isinstance(raised.value, BallastError) and not isinstance(raised.value, DataError)
    assert "not of your rows" in str(raised.value)


def test_a_missing_value_is_never_passed_over(judge: Any) -> None:
    with pytest.raises(AssertionError, match="num_secrets is missing in a row"):
        judge.raw(judge.with_broken(judge.raw_rows(), num_secrets=None))
    with pytest.raises(AssertionError, match="end_of_turn_is_target is missing in a row"):
        judge.tokenised(judge.with_broken(judge.tokenised_rows(), end_of_turn_is_target=None))


def test_a_missing_column_is_named(judge: Any) -> None:
    frame = judge.frame(judge.raw_rows(), judge.RAW).drop(columns=["ood_overlap"])
    with pytest.raises(AssertionError, match=r"raw_rows lacks \['ood_overlap'\]"):
        validate([frame], raw_rows(judge.limits()))


def test_the_frames_that_are_judged_are_left_as_they_were(judge: Any) -> None:
    frame = judge.frame(messy_rows(judge), judge.RAW)
    before = frame.copy(deep=True)
    validate([frame], raw_rows(judge.limits()))
    pandas.testing.assert_frame_equal(frame, before)


def test_nothing_is_sent_anywhere(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: calls.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: calls.append(arguments) or [])
    judge.raw(judge.raw_rows())
    assert calls == []
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_nothing_is_printed(judge: Any, capfd: pytest.CaptureFixture[str]) -> None:
    judge.raw(messy_rows(judge))
    assert capfd.readouterr() == ("", "")


def many(num_rows: int, bad: bool) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Big frames of one kind of row: sound, or with every finding at once."""
    ids = np.array([f"a folder/a file.jsonl:{index}" for index in range(num_rows)])
    found = ids if bad else np.full(num_rows, None)
    number, split = np.full(num_rows, int(bad), dtype=np.int32), np.resize(["train"] * 8 + ["validation", "test"], num_rows)
    text = {"row_id": ids, "split": split, "source": np.full(num_rows, "a folder/a file.jsonl")}
    raw = text | {"schema": np.full(num_rows, "alpaca"), "fault_kind": np.full(num_rows, "")}
    raw |= dict.fromkeys(("num_turns", "prompt_characters", "target_characters"), number)
    raw |= dict.fromkeys(("num_encoding_faults", "num_secrets", "num_personal_data"), number)
    raw |= dict.fromkeys(("nearly_repeats_row", "repeats_row_of_other_split", "ood_overlap", "test_overlap"), found)
    raw |= {"repeats_row": np.full(num_rows, None), "language": np.full(num_rows, "fr" if bad else "en")}
    raw |= {"answer_is_well_formed": np.full(num_rows, not bad)}
    tokens = text | dict.fromkeys(("num_tokens", "num_target_tokens"), np.full(num_rows, 9999 if bad else 5, dtype=np.int32))
    tokens |= dict.fromkeys(("end_of_turn_is_target", "targets_decode_to_text"), np.full(num_rows, not bad))
    return pandas.DataFrame(raw), pandas.DataFrame(tokens | {"num_turns_cut": number})


@pytest.mark.parametrize("bad", [False, True], ids=["sound rows", "every row fails every check"])
def test_fifty_two_thousand_rows_take_both_suites_less_than_five_seconds(judge: Any, bad: bool) -> None:
    judge.raw(judge.raw_rows(1))  # the import is not counted
    raw, tokens = many(52_000, bad)
    started = time.process_time()
    reports = [
        validate([raw], raw_rows(judge.limits(languages=["en"]))),
        validate([tokens], prepared_rows(judge.limits(), judge.DATA)),
    ]
    seconds = time.process_time() - started
    assert len([one for report in reports for one in report.failures()]) == (14 if bad else 0)
    assert seconds < 5.0, seconds  # 1.5 and 2.5 measured on two busy cores


def test_small_parts_are_joined_to_blocks(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    of_rows = _Validator.of_rows
    monkeypatch.setattr(_Validator, "of_rows", lambda self, block: (sizes.append(len(block)), of_rows(self, block))[1])
    rows = messy_rows(judge)
    assert validate(judge.blocks(rows, judge.RAW, 9), raw_rows(judge.limits()), block_rows=50) == judge.raw(rows)
    assert sizes == [54, 54, 22, 130]


def test_no_block_is_kept_when_the_next_one_is_asked_for(judge: Any) -> None:
    """Neither itself nor a copy: as many frames are alive before the sixth block as before the third."""
    suite = raw_rows(judge.limits())
    suite = replace(suite, checks=suite.checks[:2])
    num_alive: list[int] = []

    def blocks() -> Iterator[pandas.DataFrame]:
        for _ in range(6):
            gc.collect()
            num_alive.append(sum(type(one) is pandas.DataFrame for one in gc.get_objects()))
            yield many(50, True)[0]

    validate(blocks(), suite, block_rows=1)
    assert len(num_alive) == 6
    assert num_alive[5] == num_alive[2]
