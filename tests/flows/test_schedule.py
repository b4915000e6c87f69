"""Laws of the order in which stages run, without DVC."""

import threading
import time

import pytest

from flows.dvc_graph import Outcome, Stage
from flows.schedule import Places, run_stages, summarise

DIAMOND = [
    Stage("top", "top", (), True),
    Stage("left", "left", ("top",), False),
    Stage("right", "right", ("top",), True),
    Stage("bottom", "bottom", ("left", "right"), True),
    Stage("alone", "alone", (), False),
]


def walk(stages: list[Stage], failing: str = "") -> tuple[list[str], dict[str, str]]:
    asked: list[str] = []

    def run(stage: Stage, is_settled: bool) -> Outcome:
        asked.append(f"{stage.address} settled" if is_settled else stage.address)
        return Outcome(stage.address, "failed" if stage.address == failing else "ran")

    return asked, {outcome.stage: outcome.state for outcome in run_stages(stages, run)}


def test_what_is_settled_comes_first_and_what_follows_a_change_is_asked_anew() -> None:
    asked, _ = walk(DIAMOND)
    assert asked == ["top settled", "right settled", "left", "bottom", "alone"]


def test_a_failed_stage_stops_its_descendants_and_nothing_else() -> None:
    asked, states = walk(DIAMOND, failing="left")
    assert "bottom" not in asked
    assert states == {"top": "ran", "left": "failed", "right": "ran", "bottom": "not reached", "alone": "ran"}


def test_the_summary_counts_and_quotes() -> None:
    outcomes = [Outcome("a", "ran"), Outcome("b", "failed", 1.0, "error: no"), Outcome("c", "not reached")]
    assert summarise(outcomes) == "1 ran, 1 failed, 1 not reached\nb failed: error: no"


GRID = [Stage("top", "top", (), False), *(Stage(f"cell@{i}", "cell", ("top",), False) for i in range(6))]


class Pools(Places):
    def __init__(self, **limits: int) -> None:
        self.limits = limits

    def pool_of(self, stage: Stage) -> str:
        return "here" if stage.name == "top" else ("gpu" if int(stage.address[-1]) % 2 else "cpu")

    def num_at_once(self, pool: str) -> int:
        return self.limits[pool]


@pytest.mark.parametrize(("cpu", "gpu"), [(1, 1), (2, 1), (3, 2)])
def test_a_pool_has_as_many_stages_at_once_as_its_limit_and_no_more(cpu: int, gpu: int) -> None:
    running: dict[str, int] = {"here": 0, "cpu": 0, "gpu": 0}
    most = dict(running)
    pools, changing = Pools(here=1, cpu=cpu, gpu=gpu), threading.Lock()

    def run(stage: Stage, is_settled: bool) -> Outcome:
        pool = pools.pool_of(stage)
        with changing:
            running[pool] += 1
            most[pool] = max(most[pool], running[pool])
        time.sleep(0.05)
        with changing:
            running[pool] -= 1
        return Outcome(stage.address, "ran")

    outcomes = run_stages(GRID, run, pools)
    assert [outcome.stage for outcome in outcomes] == [stage.address for stage in GRID]
    assert most == {"here": 1, "cpu": cpu, "gpu": gpu}


def test_an_exception_stops_what_runs_and_comes_out_when_all_has_ended() -> None:
    stopping, ended = threading.Event(), []

    def run(stage: Stage, is_settled: bool) -> Outcome:
        if stage.address == "cell@0":
            raise ValueError("no")
        if stage.name == "cell":
            assert stopping.wait(10)
            time.sleep(0.05)
            ended.append(stage.address)
        return Outcome(stage.address, "ran")

    with pytest.raises(ValueError, match="no"):
        run_stages(GRID, run, Pools(here=1, cpu=3, gpu=3), stopping)
    assert sorted(ended) == [f"cell@{i}" for i in range(1, 6)]
