"""The contract between dvc.yaml, the flows and their imports: what is declared is what is used."""

import ast
import importlib
import inspect
from typing import Any

import pytest
import yaml

from components.objectives.resolve import resolve_all
from components.params import Params, load_params
from components.token_scores.identity import MEMBER_KNOBS
from infra.sync_dvc_deps import DVC_YAML, ROOT, code_dependencies, flow_of

PIPELINE: dict[str, Any] = yaml.safe_load(DVC_YAML.read_text())
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]
STAGE_FLOWS = sorted({flow_of(stage).removeprefix("flows.") for stage in STAGES.values()})
COMMANDS = ["export_cache", "export_lm_eval", "plan_cache"]
"""Flows that people start by hand; no stages, so `dvc repro` never runs them."""
COMMANDS_OF_THE_REGISTRY = ["promote", "rollback"]
"""A person's acts: they take who and why on the command line (flows/by_hand.py)."""
SECTIONS_OF_COMMANDS = {"cache_export", "cache_plan", "routing"}
"""No stage reads them, so editing them reruns nothing."""
MAX_FLOW_LINES = 60


@pytest.mark.parametrize("name", STAGES)
def test_code_deps_are_exactly_the_import_closure_of_the_flow(name: str) -> None:
    declared = sorted(path for path in STAGES[name]["deps"] if path.endswith((".py", ".jinja")))
    assert declared == code_dependencies(flow_of(STAGES[name])), "run: make dvc-deps"


@pytest.mark.parametrize("name", STAGES)
def test_params_are_exactly_the_flow_s_keyword_arguments(name: str) -> None:
    flow = flow_of(STAGES[name])
    function = getattr(importlib.import_module(flow), flow.removeprefix("flows."))
    keywords = {key for key, value in inspect.signature(function).parameters.items() if value.kind is value.KEYWORD_ONLY}
    assert {str(param).partition(".")[0] for param in STAGES[name].get("params", [])} == keywords


def test_every_stage_is_a_flow_of_its_name() -> None:
    preparing = ["prepare_base", "prepare_data", "cache_teacher", "score_tokens", "explore_mask"]
    judging = ["post_train", "sample_base", "follow_champion", "evaluate_ood", "compare", "register_model"]
    assert sorted([*preparing, *judging]) == STAGE_FLOWS
    named = {"evaluate_base", "evaluate_champion"}
    assert set(STAGES) - set(STAGE_FLOWS) == named, "base and champion are evaluated by the same flow under names of their own"


def test_a_flow_that_runs_as_a_stage_does_is_a_stage_or_a_command_that_is_listed_here() -> None:
    started = {file.stem for file in (ROOT / "flows").glob("*.py") if f"main({file.stem})" in file.read_text()}
    assert started == {*STAGE_FLOWS, *COMMANDS} and not set(STAGE_FLOWS) & set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS_OF_THE_REGISTRY)
def test_a_command_of_the_registry_is_no_stage_and_says_so(name: str) -> None:
    text = (ROOT / "flows" / f"{name}.py").read_text()
    assert name not in STAGE_FLOWS and f"run_by_hand({name}" in text and "No stage: `dvc repro` never runs it" in text
    assert not [stage for stage in STAGES.values() if f"flows/{name}.py" in stage["deps"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_sections_of_the_params_and_leaves_nothing_where_stages_do(name: str) -> None:
    function = getattr(importlib.import_module(f"flows.{name}"), name)
    parameters = inspect.signature(function).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY and parameter.name in Params.model_fields for parameter in parameters)
    text = (ROOT / "flows" / f"{name}.py").read_text()
    assert "publish_folder" not in text and "no stage: `dvc repro` never runs it" in text.lower()


def test_no_stage_depends_on_a_command_or_on_its_params() -> None:
    for stage in STAGES.values():
        assert not {f"flows/{name}.py" for name in COMMANDS} & {str(dependency) for dependency in stage["deps"]}
        assert not SECTIONS_OF_COMMANDS & {str(param).partition(".")[0] for param in stage.get("params", [])}


def test_score_tokens_depends_on_the_training_settings_that_its_members_share_and_on_no_other() -> None:
    declared = [str(param) for param in STAGES["score_tokens"]["params"]]
    assert [param for param in declared if param.startswith("training")] == [f"training.{knob}" for knob in MEMBER_KNOBS]


def test_every_section_of_params_yaml_is_taken_by_some_stage_or_belongs_to_a_command() -> None:
    taken = {str(param).partition(".")[0] for stage in STAGES.values() for param in stage.get("params", [])}
    by_hand = {
        key for name in COMMANDS for key in inspect.signature(getattr(importlib.import_module(f"flows.{name}"), name)).parameters
    }
    assert taken | SECTIONS_OF_COMMANDS == set(Params.model_fields) and by_hand | {"routing"} >= SECTIONS_OF_COMMANDS


@pytest.mark.parametrize("name", [*STAGE_FLOWS, *COMMANDS, *COMMANDS_OF_THE_REGISTRY])
def test_a_stage_s_flow_is_short(name: str) -> None:
    assert len((ROOT / "flows" / f"{name}.py").read_text().splitlines()) <= MAX_FLOW_LINES


@pytest.mark.parametrize("name", [*STAGE_FLOWS, *COMMANDS, *COMMANDS_OF_THE_REGISTRY])
def test_a_stage_imports_nothing_heavy_before_its_function_is_called(name: str) -> None:
    heavy = ("torch", "transformers", "mlflow", "prefect", "great_expectations", "components.models", "components.training")
    tree = ast.parse((ROOT / "flows" / f"{name}.py").read_text())
    imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    assert not [module for module in imported if module.startswith(heavy)]


def test_the_default_params_are_valid() -> None:
    assert load_params().registration.candidate in load_params().presets


def test_the_example_params_are_valid() -> None:
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        assert resolve_all(load_params(file))
        assert (load_params(file).data.source == "embedded") == (file.stem == "study_embedded")


def test_no_parameter_has_a_name_that_dvc_s_run_cache_overlooks() -> None:
    """DVC leaves out keys that its lock file uses for its own figures: two values of such a parameter would share a result."""

    def keys(value: Any) -> set[str]:
        return set(value).union(*(keys(part) for part in value.values())) if isinstance(value, dict) else set()

    overlooked = {"size", "nfiles", "isexec", "hash", "md5", "etag", "checksum"}
    assert not keys(load_params().model_dump()) & overlooked


def test_a_registration_stays_on_its_machine_so_that_a_fresh_clone_registers_its_own() -> None:
    """In git or in DVC's cache the stage would look done where no MLflow store knows the model."""
    assert STAGES["register_model"]["outs"] == [{"artifacts/registration.json": {"cache": False}}]
    assert "/artifacts/registration.json" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_champion_is_looked_for_every_time_and_stays_on_its_machine() -> None:
    stage = STAGES["follow_champion"]
    assert (stage["always_changed"], stage["outs"]) == (True, [{"artifacts/champion.json": {"cache": False}}])
    assert "/artifacts/champion.json" in (ROOT / ".gitignore").read_text().splitlines()
