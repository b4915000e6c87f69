"""Laws of the rules that hold for an objective wherever it was made: every preset passes, what cannot be is named."""

from dataclasses import replace
from typing import Any

import pytest

from components.errors import ParamsError
from components.objectives.presets import PRESETS
from components.objectives.resolve import resolve_all
from components.objectives.rules import refuse_impossible
from components.params import load_params


def test_every_preset_and_every_column_of_the_grid_passes() -> None:
    for name, objective in {**PRESETS, **resolve_all(load_params())}.items():
        refuse_impossible(objective, name)


@pytest.mark.parametrize(
    ("preset", "knobs", "reason"),
    [
        ("masked_mle", {"keep": 0.0}, r"keep: .*greater than 0 \(found 0\.0\)"),
        ("masked_mle", {"keep": 1.5}, r"keep: .*less than or equal to 1"),
        ("masked_mle", {"keep": float("nan")}, r"keep: "),
        ("masked_mle", {"select": "highest"}, r"select: .*'high', 'low' or 'random'"),
        ("sft_kl", {"divergence": "kl", "teacher": "online"}, r"divergence: Input should be"),
        ("sft_kl", {"distil_weight": -1.0}, r"distil_weight: "),
        ("sft_kl", {"temperature": 0.0}, r"temperature: "),
        ("masked_mle", {"warmup_steps": -1}, r"warmup_steps: "),
        ("sft_kl", {"divergence": "reverse_kl"}, r"divergence: reverse_kl needs the teacher's full law"),
        ("sft", {"distil_on": "rest"}, r"distil_on: 'rest' is empty"),
        ("uncertainty_aware", {"scope": "dataset"}, r"scope: 'dataset' needs a score that does not move"),
        ("uncertainty_aware", {"score": "column"}, r"column: score: column and the column's name go together"),
        ("stm", {"threshold_value": 0.5}, r"threshold_nats: .*exclude each other"),
        ("gain_aware", {"threshold_nats": 1.0, "threshold_value": None}, r"threshold_nats: .*not in nats"),
        ("uncertainty_aware", {"threshold_value": 0.1}, r"threshold_value: score student_nll is in nats"),
        ("masked_mle", {"score": "entropy", "token_weight": "entropy"}, r"token_weight: 'entropy' weighs by another"),
        ("sft", {"threshold_nats": 1.0}, r"threshold_nats: no effect, select all has no score"),
        ("random_mask", {"warmup_steps": 3}, r"warmup_steps: no effect"),
        ("sft", {"protect": ("format",)}, r"protect: no effect"),
        ("sft", {"normalizer": "selected_tokens"}, r"normalizer: no effect"),
        ("masked_mle", {"keep": 1.0}, r"keep: 1\.0 selects every target token"),
        ("masked_mle", {"threshold_nats": -1.0}, r"threshold_nats: -1 is below every student_nll"),
        ("gain_aware", {"threshold_value": 1.0}, r"threshold_value: 1 is outside the gains of probability"),
        ("sft_kl", {"distil_weight": 0.0}, r"distil_weight: 0 distils nothing"),
        ("masked_mle", {"temperature": 2.0}, r"temperature: no effect, nothing is distilled"),
        ("sft", {"teacher": "online"}, r"teacher: no effect"),
    ],
)
def test_what_cannot_be_is_refused_with_place_knob_and_reason(preset: str, knobs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParamsError, match=rf"^here\.{reason}"):
        refuse_impossible(replace(PRESETS[preset], **knobs), "here")
