"""Laws of the run that holds a pipeline run together: one for each params.yaml, commit and data."""

import subprocess
from pathlib import Path

import pytest

from components.tracking_parent import lineage_tags, open_parent, parent_name, pipeline_fingerprint
from components.tracking_store import initialise_store, open_client

LINEAGE = {"params.sha256": "p", "git.commit": "0123456789abcdef"}


def test_lineage_is_the_commit_and_the_hashes_of_what_was_run(tmp_path: Path) -> None:
    assert set(lineage_tags(tmp_path).values()) == {"unknown"}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert lineage_tags(tmp_path)["git.commit"] == "unknown"
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "dvc.lock").write_text("one\n")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = lineage_tags(tmp_path)
    assert (clean["git.commit"], clean["git.dirty"]) == (git("rev-parse", "HEAD"), "false")
    (tmp_path / "dvc.lock").write_text("two\n")
    running = lineage_tags(tmp_path)
    assert (running["git.dirty"], running["dvc.lock.sha256"] != clean["dvc.lock.sha256"]) == ("false", True)
    (tmp_path / "params.yaml").write_text("a: 2\n")
    edited = lineage_tags(tmp_path)
    assert (edited["git.dirty"], edited["params.sha256"] != clean["params.sha256"]) == ("true", True)


def test_one_params_yaml_at_one_commit_on_one_data_is_one_parent(store: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("training:\n  lora:\n    rank: 8\n")
    experiment, client = initialise_store(), open_client()
    first = open_parent(client, experiment, LINEAGE, tmp_path)
    assert open_parent(client, experiment, {**LINEAGE, "git.dirty": "true", "dvc.lock.sha256": "x"}, tmp_path) == first
    others = [{**LINEAGE, "params.sha256": "q"}, {**LINEAGE, "git.commit": "fedc"}]
    assert len({first, *(open_parent(client, experiment, lineage, tmp_path) for lineage in others)}) == 3
    parent = client.get_run(first)
    assert parent.data.params == {"training.lora.rank": "8"}
    assert parent.data.tags.items() >= {"git.commit": LINEAGE["git.commit"], "ballast.kind": "pipeline"}.items()


def test_other_data_are_another_pipeline_run(tmp_path: Path) -> None:
    identity = tmp_path / "identity.json"
    absent = pipeline_fingerprint(LINEAGE, identity)
    identity.write_text('{"train_fingerprint": "a"}')
    one = pipeline_fingerprint(LINEAGE, identity)
    identity.write_text('{"train_fingerprint": "b"}')
    assert len({absent, one, pipeline_fingerprint(LINEAGE, identity)}) == 3


def test_of_two_machines_that_make_a_parent_at_once_one_withdraws(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, client = initialise_store(), open_client()
    first = open_parent(client, experiment, LINEAGE)
    search = client.search_runs
    looked: list[int] = []

    def blind_at_first(*arguments: object, **options: object) -> object:
        looked.append(1)
        return [] if len(looked) == 1 else search(*arguments, **options)

    monkeypatch.setattr(client, "search_runs", blind_at_first)
    assert open_parent(client, experiment, LINEAGE) == first
    assert len(search([experiment])) == 1


def test_a_parent_is_named_after_the_experiment_the_branch_or_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert parent_name("f" * 32, LINEAGE, tmp_path) == "01234567-ffffffff"
    subprocess.run(["git", "init", "-q", "-b", "warm"], cwd=tmp_path, check=True)
    assert parent_name("f" * 32, LINEAGE, tmp_path) == "warm-ffffffff"
    monkeypatch.setenv("DVC_EXP_NAME", "muted-loam")
    assert parent_name("f" * 32, LINEAGE, tmp_path) == "muted-loam"
