"""Laws of what a flow run shows beside states and logs: read from lines and files, without a password, and never in the way."""

from pathlib import Path

import pytest

from components.tracking_store import note_run
from flows.run_artifacts import artifact_key, best_effort, link_to_run, read_percent


@pytest.mark.parametrize(
    ("line", "percent"),
    [
        ("post_train:  45%|####5     | 54/120", 45.0),
        ("prepare_base: step 300/1200, loss 0.8", 25.0),
        ("100%|#####| 5/5", 100.0),
        ("kept 45% of the tokens", None),
        ("step 5/0", None),
        ("1234%|", None),
        ("nothing of the kind", None),
    ],
)
def test_progress_is_read_from_bars_and_from_steps_and_from_nothing_else(line: str, percent: float | None) -> None:
    assert read_percent(line) == percent


def test_a_link_to_mlflow_holds_no_password_and_needs_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.tracking_store.WORK", tmp_path / ".work")
    note_run("sft-0", "3", "abc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ana:sesame@127.0.0.1:5000/")
    assert link_to_run(tmp_path, "sft-0") == "http://127.0.0.1:5000/#/experiments/3/runs/abc"
    assert link_to_run(tmp_path, "sft-1") is None
    assert link_to_run(tmp_path, "") is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
    assert link_to_run(tmp_path, "sft-0") is None


def test_what_cannot_be_shown_is_a_warning_and_no_more() -> None:
    warnings: list[str] = []
    with best_effort(warnings.append):
        raise ConnectionError("gone")
    assert warnings == ["not shown in Prefect's UI: ConnectionError: gone"]


def test_a_key_is_what_prefect_takes() -> None:
    assert artifact_key("progress", "post_train@Gain_aware-0.5") == "progress-post-train-gain-aware-0-5"
