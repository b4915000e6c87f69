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
    assert sorted([*preparing, "post_train", "evaluate_ood", "compare", "register_model"]) == STAGE_FLOWS
    assert set(STAGES) - set(STAGE_FLOWS) == {"evaluate_base"}, "the base is evaluated by the same flow under a name of its own"


def test_score_tokens_depends_on_the_training_settings_that_its_members_share_and_on_no_other() -> None:
    declared = [str(param) for param in STAGES["score_tokens"]["params"]]
    assert [param for param in declared if param.startswith("training")] == [f"training.{knob}" for knob in MEMBER_KNOBS]


def test_every_section_of_params_yaml_is_taken_by_some_stage() -> None:
    taken = {str(param).partition(".")[0] for stage in STAGES.values() for param in stage.get("params", [])}
    assert taken == set(Params.model_fields)


@pytest.mark.parametrize("name", STAGE_FLOWS)
def test_a_stage_s_flow_is_short(name: str) -> None:
    assert len((ROOT / "flows" / f"{name}.py").read_text().splitlines()) <= MAX_FLOW_LINES


@pytest.mark.parametrize("name", STAGE_FLOWS)
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
