"""Laws of remembering: what was read last stays, within the budget, and nothing is counted twice."""

import numpy as np

from components.teacher_cache.recent_records import DecodedRecord, RecentRecords


def record(num_tokens: int) -> DecodedRecord:
    numbers = np.zeros(num_tokens, dtype=np.int32)
    return DecodedRecord({"num_entries": numbers}, numbers, numbers.astype(np.float32))


def test_the_records_read_last_stay_and_the_budget_holds() -> None:
    one = record(100)
    recent = RecentRecords(budget_bytes=3 * one.num_bytes)
    for name in "abc":
        recent.keep(name, record(100))
    assert recent.get("a") is not None  # read again, so `b` is the oldest now
    recent.keep("d", record(100))
    assert [recent.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert recent.num_bytes == 3 * one.num_bytes


def test_a_record_kept_again_counts_once_and_one_beyond_the_budget_is_not_kept() -> None:
    recent = RecentRecords(budget_bytes=record(100).num_bytes)
    for _ in range(3):
        recent.keep("a", record(100))
    assert recent.num_bytes == record(100).num_bytes and recent.get("a") is not None
    recent.keep("b", record(10_000))
    assert recent.num_bytes == 0 and recent.get("b") is None
