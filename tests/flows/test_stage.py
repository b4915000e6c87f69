"""Laws of the flow `stage` that need no server; those with workers are in test_routed_stages.py."""

from pathlib import Path

import pytest

from components.errors import BallastError
from flows.stage import refuse_without_shared_disk, stage

TABLE = "routing: {pools: {gpu: {}, far: {disk: remote}}}\n"


def test_by_hand_a_stage_runs_only_where_the_disk_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(TABLE)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "gpu")
    refuse_without_shared_disk(tmp_path, "train@a")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "far")
    with pytest.raises(BallastError, match=r"pool far does not share the disk.*train@a"):
        refuse_without_shared_disk(tmp_path, "train@a")


def test_the_form_asks_for_an_address_and_explains_what_is_left_empty() -> None:
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(stage.fn)
    assert schema.required == ["address"]
    assert all(field.get("description") for field in schema.properties.values())
