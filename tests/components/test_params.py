"""Laws of the schema: the shipped params.yaml is valid, and every fault is one message that names its key and its value."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import ParamsError
from components.objectives.resolve import resolve
from components.params import PARAMS_FILE, Params, load_params


@pytest.fixture
def raw() -> dict[str, Any]:
    """A whole file of defaults, so that other values in the shipped one change no test."""
    grid = {"presets": ["sft", "masked_mle", "uncertainty_aware"], "seeds": [0, 1]}
    objective = {name: {"preset": name} for name in grid["presets"]}
    sections = "world base_model data data_contract teacher_cache cache_plan cache_export token_scores training probe evaluation"
    sections += " base_text comparison registration compute"
    return {**grid, "objective": objective, **{name: {} for name in sections.split()}, "training": {"lora": {}}}


def load(tmp_path: Path, raw: Any) -> Params:
    (tmp_path / "params.yaml").write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return load_params(tmp_path / "params.yaml")


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        raw = raw[name]
    raw[last] = value


def test_the_shipped_file_is_valid_and_every_column_of_its_grid_resolves() -> None:
    params = load_params()
    for preset in params.presets:
        resolve(preset, params.objective[preset])


def test_the_shipped_file_sets_every_key_of_the_schema() -> None:
    """What is not in the file cannot be found by reading it."""

    def missing(section: Any, given: Any, place: str) -> list[str]:
        gaps = []
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if name not in given:
                gaps.append(f"{place}{name}")
            elif hasattr(type(value), "model_fields"):
                gaps += missing(value, given[name], f"{place}{name}.")
            assert field is not None
        return gaps

    assert missing(load_params(), yaml.safe_load(PARAMS_FILE.read_text()), "") == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.learning_rat", 0.1, "training.learning_rat"),
        ("colour", "red", "colour"),
        ("objective.sft.kep", 0.5, "objective.sft.kep"),
        ("training.learning_rate", -0.1, "training.learning_rate"),
        ("training.learning_rate", "fast", "training.learning_rate"),
        ("training.learning_rate", float("nan"), "training.learning_rate"),
        ("training.num_steps", 0, "training.num_steps"),
        ("training.num_steps", 2.5, "training.num_steps"),
        ("training.precision", "fp8", "training.precision"),
        ("training.batch_size", 15, "batch_size 15 is not a multiple of micro_batch_size"),
        ("training.lora.rank", 0, "training.lora.rank"),
        ("training.weight_decay", float("inf"), "training.weight_decay"),
        ("teacher_cache.temperature", 0.0, "teacher_cache.temperature"),
        ("teacher_cache.max_entries", 5000, "teacher_cache.max_entries"),
        ("teacher_cache", {"source": "vllm", "temperature": 2.0}, "temperature 2.0 needs source: capture"),
        ("objective.masked_mle.keep", 0.0, "objective.masked_mle.keep"),
        ("objective.masked_mle.keep", 1.5, "objective.masked_mle.keep"),
        ("objective.sft.preset", "dpo", "objective.sft.preset"),
        ("objective.masked_mle.score", "vibes", "objective.masked_mle.score"),
        ("objective.uncertainty_aware.distil_weight", float("inf"), "objective.uncertainty_aware.distil_weight"),
        ("objective.uncertainty_aware.temperature", 0.0, "objective.uncertainty_aware.temperature"),
        ("token_scores.num_members", 3, "token_scores.num_members"),
        ("token_scores.reference", "some", "token_scores.reference"),
        ("base_model.source", "hub", "needs hub_id and revision"),
        ("base_model.revision", "main", "base_model.revision"),
        ("base_model.revision", "A" * 40, "base_model.revision"),
        ("base_model.hidden_size", 24, "base_model.hidden_size"),
        ("base_model.num_heads", 3, "hidden_size 64 is not a multiple of num_heads 3"),
        ("base_model.architecture", "rwkv", "base_model.architecture"),
        ("data.validation_fraction", 0.7, "data.validation_fraction"),
        ("presets", [], "presets"),
        ("presets", ["sft", "sft"], "must not repeat"),
        ("presets", ["sft", "wild"], "'wild'"),
        ("presets", ["sft"], "registration.candidate 'uncertainty_aware' is not one of presets"),
        ("seeds", [0, -1], "seeds.1"),
        ("seeds", [0, 0], "must not repeat"),
        ("comparison.confidence", 1.0, "comparison.confidence"),
        ("registration.model_name", "a b", "registration.model_name"),
        ("compute.device", "tpu", "compute.device"),
        ("compute.num_threads", -1, "compute.num_threads"),
        ("cache_plan.num_records", 4, "cache_plan.num_records"),
        ("cache_plan.num_epochs", 0.0, "cache_plan.num_epochs"),
        ("cache_plan.epochs", 1, "cache_plan.epochs"),
        ("cache_export.path", "cache.csv", "cache_export.path"),
        ("cache_export.path", "artifacts/teacher_cache/a.parquet", "artifacts/ holds what stages make"),
        ("cache_export.path", "inputs/../artifacts/a.parquet", "artifacts/ holds what stages make"),
        ("training", None, "training"),
    ],
)
def test_a_fault_is_one_message_that_names_key_and_value(
    tmp_path: Path, raw: dict[str, Any], key: str, value: Any, said: str
) -> None:
    put(raw, key, value)
    with pytest.raises(ParamsError) as caught:
        load(tmp_path, raw)
    message = str(caught.value)
    assert said in message and message.startswith("params.yaml: "), message
    assert message.count("\n") == 1 and message.endswith("and run the same command again."), message
    if isinstance(value, str | int | float) and "multiple" not in said and "needs" not in said and value == value:
        assert repr(value) in message


def test_two_faults_are_told_at_once(tmp_path: Path, raw: dict[str, Any]) -> None:
    put(raw, "training.num_steps", 0)
    put(raw, "compute.device", "tpu")
    with pytest.raises(ParamsError) as caught:
        load(tmp_path, raw)
    assert "training.num_steps" in str(caught.value) and "compute.device" in str(caught.value)


def test_a_pinned_hub_model_with_own_data_is_valid(tmp_path: Path, raw: dict[str, Any]) -> None:
    raw["base_model"] |= {"source": "hub", "hub_id": "org/name", "revision": "0123456789abcdef" * 2 + "01234567"}
    with pytest.raises(ParamsError, match=r"data\.source 'embedded' is the language of the embedded base"):
        load(tmp_path, raw)
    raw["data"]["source"] = "files"
    assert load(tmp_path, raw).base_model.hub_id == "org/name"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("!!python/object:os.system {}", "YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        load(tmp_path, text)


def test_a_missing_file_names_the_command_that_brings_it_back(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"git checkout -- params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_numbers_as_yaml_and_people_write_them_are_understood(tmp_path: Path, raw: dict[str, Any]) -> None:
    put(raw, "training.learning_rate", "1e-3")  # YAML 1.1 reads 1e-3 as a word, DVC as a number
    assert load(tmp_path, raw).training.learning_rate == 1e-3


def test_params_cannot_be_changed_after_reading() -> None:
    with pytest.raises(ValueError):
        load_params().training.num_steps = 5
