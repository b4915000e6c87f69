"""The example runs, and shows what it says: SFT forgets more of the old task than `uncertainty_aware` does."""

import pytest

from examples.plain_trainer import main


def test_the_example_runs_and_the_self_distilled_student_forgets_less(capsys: pytest.CaptureFixture[str]) -> None:
    losses = main(num_base_steps=120, num_steps=30)
    assert losses["base"]["copy"] < 0.5
    for method in ("sft", "uncertainty_aware"):
        assert losses[method]["reverse"] < losses["base"]["reverse"], method
    assert losses["uncertainty_aware"]["copy"] < losses["sft"]["copy"]
    assert "new task: reverse" in capsys.readouterr().out
