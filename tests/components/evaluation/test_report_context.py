"""Laws of the line that tells an objective: two that compute different losses never read the same."""

from dataclasses import replace
from typing import Any

import pytest

from components.evaluation.report_context import describe_objective
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS

DIFFERENCES: list[dict[str, Any]] = [
    {"scope": "micro_batch"},
    {"scope": "sequence"},
    {"score": "teacher_nll", "scope": "dataset"},
    {"score": "teacher_nll"},
    {"temperature": 2.0},
    {"normalizer": "selected_tokens"},
    {"teacher": "online"},
    {"teacher": "online", "divergence": "jsd"},
    {"warmup_steps": 20},
    {"warmup_steps": 30},
    {"select": "low"},
    {"select": "random"},
    {"keep": 0.25},
    {"threshold_nats": 1.0},
    {"token_weight": "probability"},
    {"distil_on": "all"},
    {"distil_weight": 0.5},
    {"distil_weight_final": 0.5},
    {"prompt_tokens": "distil_only"},
    {"protect": ("end_of_turn",)},
]


def test_objectives_that_differ_in_one_knob_read_differently() -> None:
    lines = [describe_objective(replace(Objective(), **change)) for change in [{}, *DIFFERENCES]]
    assert len(set(lines)) == len(lines), lines


def test_presets_read_differently() -> None:
    lines = [describe_objective(objective) for objective in PRESETS.values()]
    assert len(set(lines)) == len(lines), lines


@pytest.mark.parametrize("change", [{"temperature": 2.0}, {"teacher": "online"}], ids=str)
def test_a_teacher_that_is_not_used_is_not_told(change: dict[str, Any]) -> None:
    assert describe_objective(replace(PRESETS["sft"], **change)) == describe_objective(PRESETS["sft"])


def test_defaults_are_left_out() -> None:
    said = describe_objective(Objective())
    assert said == ("maximum likelihood on the 50% with the highest student_nll, plus 1 x KL(base || student) on the rest")
