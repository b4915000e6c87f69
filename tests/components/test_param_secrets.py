"""Laws of params.yaml and credentials: one is refused before anything else, by key and by shape, and never shown.

The keys are put together here, so that no file of the repository holds one whole.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.artifacts import ROOT
from components.errors import ParamsError
from components.param_secrets import SECRET_KEY, find_faults
from components.params import PARAMS_FILE, load_params
from tests.components.test_secrets_in_text import PLANTED

WORDS = "correct-Horse-battery-7"


def refusal(tmp_path: Path, text: str) -> str:
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load_params(file)
    return str(caught.value)


def planted(key: str, value: object) -> str:
    """The default params with one value more."""
    raw: dict[str, Any] = yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8"))
    *above, last = key.split(".")
    section = raw
    for name in above:
        section = section[name]
    section[last] = value
    return yaml.safe_dump(raw)


@pytest.mark.parametrize("file", [PARAMS_FILE, *sorted((ROOT / "examples").glob("*.yaml"))], ids=lambda file: file.name)
def test_our_own_files_hold_none(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert find_faults(text, yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "key",
    "base_model.token data.hf_token password compute.api_key base_model.apikey aws_secret_access_key registration.client_secret "
    "routing.auth_string evaluation.credentials MLFLOW_TRACKING_PASSWORD account_key".split(),
)
def test_a_key_that_names_a_credential_is_refused_whatever_its_value(tmp_path: Path, key: str) -> None:
    said = refusal(tmp_path, planted(key, WORDS))
    assert f"params.yaml: {key} has the name of a credential" in said and "environment" in said
    assert WORDS not in said
    assert find_faults("", {key.rpartition(".")[2]: 123456789}), "a number may be a password"


@pytest.mark.parametrize("key", "batch_tokens max_secret_fraction num_keys end_of_turn monkey tokenizer author".split())
def test_a_key_that_counts_or_only_sounds_like_one_is_none(key: str) -> None:
    assert SECRET_KEY.search(key) is None


@pytest.mark.parametrize("kind", PLANTED)
def test_a_value_with_the_shape_of_a_credential_is_found_at_its_place(kind: str) -> None:
    assert any(
        place == "data.path" and "credential" in what for place, what in find_faults("", {"data": {"path": PLANTED[kind]}})
    )


def test_a_value_with_the_shape_of_a_credential_is_refused_and_not_shown(tmp_path: Path) -> None:
    token = PLANTED["hugging_face_token"]
    said = refusal(tmp_path, planted("data.path", token))
    assert "params.yaml: data.path holds what looks like a credential (hugging_face_token)" in said and token not in said


def test_a_comment_and_a_file_that_is_no_yaml_hide_none(tmp_path: Path) -> None:
    token = PLANTED["hugging_face_token"]
    for text in (f"{PARAMS_FILE.read_text()}\n# my token: {token}\n", f"a: [1\nb: {token}\n", f'a: "{token}'):
        said = refusal(tmp_path, text)
        assert "line" in said and "hugging_face_token" in said and token not in said


def test_an_address_with_a_password_is_refused_in_a_list_of_a_section(tmp_path: Path) -> None:
    said = refusal(tmp_path, planted("data.hub", [{"hub_id": f"https://user:{WORDS}@host.example/set", "revision": "0" * 40}]))
    assert "data.hub.0.hub_id" in said and WORDS not in said


def test_a_file_that_is_no_yaml_is_told_by_line_and_not_by_its_text(tmp_path: Path) -> None:
    said = refusal(tmp_path, 'presets: [sft]\nlogin: "opensesame\n')
    assert "not valid YAML" in said and "line" in said and "opensesame" not in said
