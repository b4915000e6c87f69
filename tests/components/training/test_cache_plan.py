"""Laws of a plan as a whole: what it says of the cells of a grid, of a cache that is there, and in which units."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from components.errors import DataError
from components.objectives.presets import PRESETS
from components.params import CachePlanParams, TrainingParams
from components.teacher_cache.shard_plan import CaptureSettings
from components.training.cache_plan import CachePlan, PlanInputs, count_runs, plan_cache, plan_figures
from components.training.plan_report import in_bytes, in_time, render_plan
from tests.conftest import PAD, Row, build_identity, build_model, build_rows, capture_rows

ROWS = build_rows(60)
TRAINING = TrainingParams(num_steps=30, batch_size=8, micro_batch_size=4)
GRID = {name: PRESETS[name] for name in ("sft", "sft_kl", "uncertainty_aware", "stm")}


def inputs_of(rows: list[Row], **identity: Any) -> PlanInputs:
    return PlanInputs(
        rows, build_identity(**identity), CaptureSettings(200, 200), 50, build_model, build_model, torch.device("cpu"), PAD
    )


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., CachePlan]:
    def make(inputs: PlanInputs, objectives: Any = GRID, **params: Any) -> CachePlan:
        wanted = CachePlanParams(**{"num_records": 16, **params})
        return plan_cache(inputs, objectives, 2, TRAINING, wanted, target=tmp_path / "cache", work=tmp_path / "plan")

    return make


def test_a_plan_counts_what_will_be_captured(tmp_path: Path, make_plan: Callable[..., CachePlan]) -> None:
    plan = make_plan(inputs_of([*ROWS, ROWS[0]]))
    manifest = capture_rows(tmp_path, build_model(), ROWS, build_identity(), shard_tokens=200)
    assert manifest is not None
    assert (plan.num_rows, plan.size.num_records, plan.size.num_tokens) == (61, 60, manifest.num_tokens)
    assert plan.size.num_shards == len(manifest.shards) and plan.num_probed_records == 16
    assert plan.padded_tokens >= sum(len(row.input_ids) for row in ROWS)
    real = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    assert abs(plan.size.total_bytes / real - 1) < 0.01, "tail_mass 0: every token keeps all its entries"
    assert sum(choice.is_configured for choice in plan.choices) == 1
    assert list((tmp_path / "plan").iterdir()) == [], "the probe leaves nothing"


def test_a_cache_that_is_there_already_is_told_with_its_real_size(tmp_path: Path, make_plan: Callable[..., CachePlan]) -> None:
    capture_rows(tmp_path, build_model(), ROWS, build_identity(), shard_tokens=200)
    there = make_plan(inputs_of(ROWS))
    assert there.existing is not None and in_bytes(there.existing.num_bytes) in render_plan(there)
    other = make_plan(inputs_of([*ROWS, *build_rows(5, seed=9)], data_fingerprint="more"))
    assert other.existing is None and other.held_tokens == there.size.num_tokens
    assert f"the last cache holds {other.held_tokens:,} of these tokens" in render_plan(other)


def test_the_page_says_every_number_with_its_unit_and_the_figures_are_json(make_plan: Callable[..., CachePlan]) -> None:
    plan = make_plan(inputs_of(ROWS, tail_mass=0.03, max_entries=16))
    page = render_plan(plan)
    assert "**tail 0.03, at most 16** (configured)" in page and "K = 32" in page and "K = 64" not in page
    for words in ("it fits", "B ± ", "tokens/s at width", "nats", "epochs x runs", "4 cells of the grid", "0 MB more"):
        assert words in page, words
    assert "2 cells read the base's logprobs of the labels" in page
    figures = plan_figures(plan)
    assert figures["size"]["total_bytes"] == plan.size.total_bytes and figures["capture"]["total"] > 0


def test_a_disk_that_is_too_small_and_a_grid_that_needs_no_cache_are_said(make_plan: Callable[..., CachePlan]) -> None:
    plan = make_plan(inputs_of(ROWS), {"sft": PRESETS["sft"]})
    page = render_plan(replace(plan, free_bytes=1000))
    assert "IT DOES NOT FIT (1.2 x its size is wanted)" in page and "no cell distils from it" in page


def test_cells_are_counted_by_what_they_need_of_the_teacher() -> None:
    grid = {**GRID, "online": replace(PRESETS["sft_kl"], teacher="online"), "gain_aware": PRESETS["gain_aware"]}
    runs = count_runs(grid, 3, TRAINING, 60, None)
    assert (runs.num_distilling, runs.num_scoring, runs.num_plain, runs.num_online) == (9, 3, 3, 3)
    assert (runs.num_epochs, count_runs(grid, 3, TRAINING, 60, 2.0).num_steps) == (4.0, 15)


@pytest.mark.parametrize(
    ("rows", "said"),
    [([], "the training split has no rows"), ([Row([3, 4], [True, False])], "none of the 1 training rows has a token to cache")],
)
def test_nothing_to_cache_is_refused(rows: list[Row], said: str, make_plan: Callable[..., CachePlan]) -> None:
    with pytest.raises(DataError, match=f"{said}.*dvc repro"):
        make_plan(inputs_of(rows))


def test_units_follow_the_size_of_a_number() -> None:
    assert [in_bytes(number) for number in (5e4, 2.5e6, 3.21e9, 1.5e12)] == ["0.05 MB", "2.50 MB", "3.21 GB", "1,500.00 GB"]
    assert [in_time(number) for number in (5e-6, 2e-3, 12, 300, 7200)] == ["5 µs", "2.0 ms", "12.0 s", "5.0 min", "2.0 h"]
