"""Laws of the champion: the database is read as MLflow's client would, and what is fetched is safetensors in one folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components import champion, promotion
from components.artifacts import ROOT
from components.champion import fetch_champion, find_champion
from components.errors import ArtifactError, ModelError, TrackingError
from components.promotion import promote, read_history
from components.registry import fetch_champion as by_name
from components.tracking_store import initialise_store, open_client

NAME = "ballast"
TAGS = {f"ballast.{key}_fingerprint": key for key in ("model", "tokenizer", "base")} | {"gate.verdict": "pass"}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.setattr(promotion, "LOCK", tmp_path / "registry.lock")
    monkeypatch.setattr(champion, "FETCHED", tmp_path / "fetched")
    return file


def store_model(folder: Path, *more: str) -> Path:
    """Files where MLflow's transformers flavour puts them."""
    files = ["MLmodel", "model/config.json", "model/model.safetensors", "components/tokenizer/tokenizer.json", *more]
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def make_versions(source: Path, num: int = 2) -> None:
    initialise_store()
    client = open_client()
    client.create_registered_model(NAME)
    for _ in range(num):
        client.create_model_version(NAME, str(source), tags=TAGS)


def test_without_a_database_there_is_no_champion_and_none_is_made(database: Path) -> None:
    assert find_champion(NAME) is None
    assert not database.exists()


def test_a_champion_is_described_by_its_tags_and_the_database_says_what_the_client_says(database: Path, tmp_path: Path) -> None:
    make_versions(tmp_path)
    assert find_champion(NAME) is None
    promote(NAME, 2, who="anna", why="better")
    found = find_champion(NAME)
    fingerprints = {f"{key}_fingerprint": key for key in ("model", "tokenizer", "base")}
    assert found == {"name": NAME, "version": 2, **fingerprints, "uri": "models:/ballast/2"}
    assert champion._ask_client(NAME) == found
    assert find_champion("another") is None


def test_an_alias_set_in_the_ui_is_honoured_and_entered(database: Path, tmp_path: Path) -> None:
    make_versions(tmp_path)
    promote(NAME, 1, who="anna", why="the first")
    open_client().set_registered_model_alias(NAME, "champion", "2")
    found = find_champion(NAME)
    assert found is not None and found["version"] == 2
    assert [entry["what"] for entry in read_history(NAME)] == ["promoted", "edited"]


def test_looking_for_a_champion_that_is_known_imports_no_mlflow(database: Path, tmp_path: Path) -> None:
    make_versions(tmp_path)
    promote(NAME, 1, who="anna", why="the first")
    code = "import sys; from components.champion import find_champion as f; f('ballast'); sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ)).returncode == 0


def test_a_database_that_cannot_be_read_is_an_error_and_not_a_champion_forgotten(database: Path) -> None:
    database.write_text("no database at all, " * 100)
    with pytest.raises(TrackingError, match="the champion cannot be read"):
        find_champion(NAME)


def test_a_server_that_is_down_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9 cannot be used"):
        find_champion(NAME)


def test_a_champion_on_this_machine_is_fetched_without_a_copy(database: Path, tmp_path: Path) -> None:
    stored = store_model(tmp_path / "stored")
    make_versions(stored)
    promote(NAME, 1, who="anna", why="the first")
    found = find_champion(NAME)
    assert found is not None
    folder = by_name(found)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").resolve() == stored / "model" / "model.safetensors"
    assert fetch_champion(found) == folder


@pytest.mark.parametrize("name", ["model/pytorch_model.bin", "data/model.pkl", "checkpoint.pt"])
def test_a_champion_with_a_pickle_is_refused(name: str, database: Path, tmp_path: Path) -> None:
    make_versions(store_model(tmp_path / "stored", name))
    with pytest.raises(ModelError, match=f"version 1 of ballast, holds .*{Path(name).name}"):
        fetch_champion({"name": NAME, "version": 1, "model_fingerprint": "model"})


@pytest.mark.parametrize("fingerprint", ["../../outside", "/etc", "..", "a/b", "x\0"])
def test_a_tag_of_the_registry_cannot_lead_a_fetch_out_of_its_folder(fingerprint: str, database: Path, tmp_path: Path) -> None:
    """Whoever may write to the registry could otherwise have any folder of this machine replaced."""
    make_versions(store_model(tmp_path / "stored"))
    (tmp_path / "outside").mkdir()
    with pytest.raises(ArtifactError, match=r"registry's tag .* not the plain name"):
        fetch_champion({"name": NAME, "version": 1, "model_fingerprint": fingerprint})
    assert (tmp_path / "outside").is_dir()


def test_a_link_out_of_a_stored_model_is_refused(database: Path, tmp_path: Path) -> None:
    stored = store_model(tmp_path / "stored")
    (tmp_path / "secret").write_text("of somebody else's")
    (stored / "model" / "notes.json").symlink_to(tmp_path / "secret")
    make_versions(stored)
    with pytest.raises(ModelError, match=r"notes\.json, a link that leads out"):
        fetch_champion({"name": NAME, "version": 1, "model_fingerprint": "model"})


@pytest.mark.parametrize("lost", ["model/model.safetensors", "model/config.json", "components/tokenizer/tokenizer.json"])
def test_a_champion_that_lacks_a_part_is_refused(lost: str, database: Path, tmp_path: Path) -> None:
    stored = store_model(tmp_path / "stored")
    (stored / lost).unlink()
    make_versions(stored)
    with pytest.raises(ModelError, match="has no"):
        fetch_champion({"name": NAME, "version": 1, "model_fingerprint": "model"})
    assert not (tmp_path / "fetched").exists() or not list((tmp_path / "fetched").iterdir())
