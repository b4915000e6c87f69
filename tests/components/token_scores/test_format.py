"""Laws of the manifest: it comes back as it was written, a damaged one is refused, another identity is told field by field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.errors import ArtifactError, ScoresMismatchError
from components.params import TokenScoresParams, TrainingParams
from components.token_scores.format import MANIFEST, ScoresManifest, check_identity, read_manifest
from components.token_scores.identity import MEMBER_KNOBS, settings_of
from tests.components.token_scores.conftest import SETTINGS, build_scores_identity

OTHER = {
    "model_fingerprint": "other",
    "tokenizer_fingerprint": "other",
    "data_fingerprint": "other",
    "settings": {**SETTINGS, "token_scores.num_members": 6},
}


def manifest() -> ScoresManifest:
    return ScoresManifest(build_scores_identity(), ["own", "reference_nll"], 3, 10, "c0ffee", {"columns": "abc"})


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    assert read_manifest(tmp_path) == manifest()


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_another_identity_is_refused_with_the_field_both_values_and_the_command(name: str, value: Any) -> None:
    ours, theirs = build_scores_identity(), replace(build_scores_identity(), **{name: value})
    with pytest.raises(ScoresMismatchError) as caught:
        check_identity(theirs, ours, Path("scores"))
    said = str(caught.value)
    expected = "token_scores.num_members: scores have 6, this run needs 4" if name == "settings" else f"{name}: scores have other"
    assert expected in said and said.count("scores have") == 1 and "dvc repro score_tokens" in said
    assert theirs.fingerprint != ours.fingerprint


def test_a_setting_that_only_one_side_has_is_told() -> None:
    ours, theirs = build_scores_identity(), build_scores_identity(settings={"token_scores.reference": "none"})
    with pytest.raises(ScoresMismatchError, match=r"token_scores\.num_members: scores have nothing, this run needs 4"):
        check_identity(theirs, ours, Path("scores"))


def test_every_flipped_bit_of_the_manifest_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    file = tmp_path / MANIFEST
    whole = file.read_bytes()
    num_refused = 0
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert read_manifest(tmp_path) == manifest(), f"bit {bit}"
        except ArtifactError as error:
            assert "dvc repro" in str(error)
            num_refused += 1
    assert num_refused > 0.8 * 8 * len(whole) / 3


@pytest.mark.parametrize("text", ["[]", "{}", '{"identity": {"schema_version": 1}}', '{"identity": 3}', "", "not json"])
def test_a_file_that_is_no_manifest_is_refused_with_the_command(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="dvc repro"):
        read_manifest(tmp_path)


def test_a_missing_manifest_and_another_schema_version_say_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"missing.*dvc repro score_tokens"):
        read_manifest(tmp_path)
    manifest().write(tmp_path)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    raw["identity"]["schema_version"] = 9
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=r"schema version 9, this Ballast reads 1.*dvc repro"):
        read_manifest(tmp_path)


def test_every_training_setting_is_either_shared_by_the_members_or_known_to_leave_them_alone() -> None:
    without_effect = {"num_steps", "save_every_steps", "log_every_steps", "early_stopping"}
    assert {*MEMBER_KNOBS, *without_effect} == set(TrainingParams.model_fields)


def test_what_has_no_effect_is_not_in_the_identity() -> None:
    shared = TrainingParams()
    nothing = [settings_of(TokenScoresParams(seed=seed, num_members=2 + 2 * seed), shared) for seed in (0, 1)]
    assert nothing == [{"token_scores.reference": "none"}] * 2
    members = TokenScoresParams(reference="cross_fit")
    assert settings_of(members, shared) == settings_of(members, TrainingParams(num_steps=7, log_every_steps=1))
    assert settings_of(members, shared) != settings_of(members, TrainingParams(learning_rate=0.1))
    assert settings_of(members, shared) != settings_of(TokenScoresParams(reference="cross_fit", seed=1), shared)
    local = settings_of(TokenScoresParams(reference="local", reference_path="x", columns=("own",)), shared)
    assert local["token_scores.reference_path"] == "x" and local["token_scores.columns"] == ["own"]


def test_settings_come_back_equal_through_the_manifest(tmp_path: Path) -> None:
    """Tuples would come back as lists, and every run would be refused."""
    params = TokenScoresParams(reference="cross_fit", columns=("own", "other"))
    training = TrainingParams.model_validate({"lora": {"enabled": True, "target_modules": ("q_proj", "v_proj")}})
    identity = build_scores_identity(settings=settings_of(params, training))
    replace(manifest(), identity=identity).write(tmp_path)
    check_identity(read_manifest(tmp_path).identity, identity, tmp_path)
