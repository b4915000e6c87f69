"""Laws of where a base comes from: exactly the pinned snapshot, found without a network, described by content."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components import model_sources
from components.artifacts import ROOT, fingerprint_file
from components.errors import ModelError
from components.model_sources import describe_folder, locate
from components.models import weights_fingerprint
from components.params import BaseModelParams
from tests.conftest import build_model

REVISION = "0123456789abcdef" * 2 + "01234567"
LOCAL = BaseModelParams(source="local", path="somewhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def lay_out_hub(home: Path, files: Path) -> Path:
    """As huggingface_hub does: blobs, snapshots that point to them, and a branch that has moved on."""
    repository = home / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in files.iterdir():
        blob = repository / "blobs" / fingerprint_file(file)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    newer = repository / "snapshots" / ("f" * 40)
    newer.mkdir()
    (newer / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("f" * 40)
    return snapshot


SCRIPT = """
import json, sys
from components.errors import ModelError
from components.model_sources import describe_folder, locate
from components.params import BaseModelParams
answers = []
for hub_id, revision in json.loads(sys.argv[1]):
    params = BaseModelParams(source="hub", hub_id=hub_id, revision=revision)
    try:
        folder = locate(params)
        answers.append([str(folder), describe_folder(folder, params)])
    except ModelError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def ask_hub(home: Path, *wanted: tuple[str, str]) -> Any:
    """Folder and description of each (hub_id, revision), or what was said instead."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    asked = [sys.executable, "-c", SCRIPT, json.dumps(wanted)]
    done = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_pinned_snapshot_is_found_offline_and_described_without_a_path_of_this_machine(tmp_path: Path, folder: Path) -> None:
    snapshot = lay_out_hub(tmp_path / "home", folder)
    ((found, description),) = ask_hub(tmp_path / "home", ("org/name", REVISION))
    assert found == str(snapshot), "the pinned revision, not the branch"
    assert (description["source"], description["hub_id"], description["revision"]) == ("hub", "org/name", REVISION)
    assert description["folder"] is None and str(tmp_path) not in json.dumps(description)
    same = describe_folder(folder, LOCAL)
    assert description["files"] == same["files"] and description["fingerprint"] == same["fingerprint"]


def test_a_model_that_cannot_be_had_is_one_message_with_name_revision_and_repair(tmp_path: Path, folder: Path) -> None:
    lay_out_hub(tmp_path / "home", folder)
    wanted = [("org/other", REVISION), ("org/name", "a" * 40), ("no such name!", REVISION)]
    for (hub_id, revision), said in zip(wanted, ask_hub(tmp_path / "home", *wanted), strict=True):
        assert said.startswith(f"base_model.hub_id: {hub_id}@{revision} cannot be had") and "base_model.source: local" in said


def test_a_local_folder_is_found_from_the_root_and_a_wrong_one_says_what_is_wrong(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_sources, "ROOT", tmp_path)
    assert locate(BaseModelParams(source="local", path="model")) == folder
    assert locate(BaseModelParams(source="local", path=str(folder))) == folder
    with pytest.raises(ModelError, match=r"base_model\.path: gone: no such folder"):
        locate(BaseModelParams(source="local", path="gone"))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"base_model\.path: model: no config\.json in it"):
        locate(BaseModelParams(source="local", path="model"))


def test_a_description_tells_files_architecture_and_size_and_where_a_local_folder_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_sources, "ROOT", folder.parent)
    description = describe_folder(folder, LOCAL)
    assert description["folder"] == "model" and description["model_type"] == "llama"
    assert description["num_parameters"] == sum(weight.numel() for weight in load_file(folder / "model.safetensors").values())
    assert set(description["files"]) == {"config.json", "generation_config.json", "model.safetensors"}
    assert description["fingerprint"] == weights_fingerprint(folder)


def test_the_fingerprint_follows_weights_and_configuration(folder: Path) -> None:
    known = describe_folder(folder, LOCAL)["fingerprint"]
    (folder / "README.md").write_text("words")
    (folder / "generation_config.json").write_text("{}")
    assert describe_folder(folder, LOCAL)["fingerprint"] == known
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert describe_folder(folder, LOCAL)["fingerprint"] != known


def test_our_own_description_is_not_part_of_what_it_describes(folder: Path) -> None:
    known = describe_folder(folder, LOCAL)
    (folder / "base_model.json").write_text("{}")
    assert describe_folder(folder, LOCAL) == known


def test_a_folder_that_wants_its_own_code_run_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil"}}))
    with pytest.raises(ModelError, match=r"auto_map.*runs no code"):
        describe_folder(folder, LOCAL)


def test_pickled_weights_alone_are_refused_and_beside_safetensors_not_even_described(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert "pytorch_model.bin" not in describe_folder(folder, LOCAL)["files"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights are not read"):
        describe_folder(folder, LOCAL)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused_by_name(folder: Path, kept: float) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file.*Fetch it again"):
        describe_folder(folder, LOCAL)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_configuration_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        describe_folder(folder, LOCAL)
