"""Laws of the system metrics: they go the way of the points, end with the training and stop nothing."""

import threading
import time
from collections.abc import Mapping

import pytest

from components import tracking_system
from components.tracking_system import SystemSampler


def sample(seconds_ago: float = 0.0) -> list[tuple[int, Mapping[str, float]]]:
    taken: list[tuple[int, Mapping[str, float]]] = []
    sampler = SystemSampler(lambda step, values: taken.append((step, values)), time.time() - seconds_ago)
    sampler.start()
    sampler.stop()
    return taken


def test_the_shortest_training_has_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking_system.SWITCH, raising=False)
    [(step, values)] = sample()
    assert step == 0
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= values.keys()


def test_a_resumed_run_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking_system.SWITCH, raising=False)
    assert [step for step, _ in sample(seconds_ago=1005)] == [100]


def test_samples_are_taken_while_the_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking_system.SWITCH, raising=False)
    third = threading.Event()
    steps: list[int] = []

    def record(step: int, values: Mapping[str, float]) -> None:
        steps.append(step)
        if len(steps) == 3:
            third.set()

    sampler = SystemSampler(record, time.time(), interval_seconds=0.01)
    sampler.start()
    assert third.wait(30)
    sampler.stop()
    assert steps == sorted(steps)


@pytest.mark.parametrize("word", ["false", "False", "0"])
def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv(tracking_system.SWITCH, word)
    assert sample() == []


def test_a_broken_gauge_ends_the_samples_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[object]:
        raise RuntimeError("no such driver")

    monkeypatch.delenv(tracking_system.SWITCH, raising=False)
    monkeypatch.setattr(tracking_system, "open_gauges", broken)
    assert sample() == []
    assert "no such driver" in caplog.text
