"""Writes the code dependencies of dvc.yaml: each stage's flow and everything it imports.

    python -m infra.sync_dvc_deps

Imports are cache keys: DVC reruns a stage when a module it uses has changed, so `deps` must be exactly the import closure of the
flow. Observers are left out: they watch a stage (processes, logs, curves), and nothing they do reaches its outputs.
tests/flows/test_pipeline_contract.py fails when dvc.yaml is out of date.
"""

from functools import cache
from pathlib import Path
from typing import Any

import grimp
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
DVC_YAML = ROOT / "dvc.yaml"
RUNNERS = ("flows.stage_runner", "flows.launch", "flows.child_process", "flows.warm_")
OBSERVERS = (*RUNNERS, "components.tracking")
OBSERVERS_BUT_FOR = {"register_model": RUNNERS}
"""Registering is tracking, so there the tracking modules count."""


@cache
def import_graph() -> Any:
    return grimp.build_graph("components", "flows", exclude_type_checking_imports=True, cache_dir=None)


def flow_of(stage: dict[str, Any]) -> str:
    """`flows.<name>` of a stage's command."""
    words = stage["cmd"].split()
    return str(words[words.index("-m") + 1])


def code_dependencies(flow: str) -> list[str]:
    """Files of the flow and of every first-party module it imports, sorted; empty packages and observers are left out."""
    modules = {flow, *import_graph().find_upstream_modules(flow)}
    observers = OBSERVERS_BUT_FOR.get(flow.removeprefix("flows."), OBSERVERS)
    files = {_file(module) for module in modules if not module.startswith(observers)}
    jinja = {f"{file.removesuffix('.py')}.{kind}.jinja" for file in files for kind in ("html", "md")}
    return sorted(files - {""} | {file for file in jinja if (ROOT / file).exists()})


def _file(module: str) -> str:
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    return str(path.relative_to(ROOT)) if path.exists() else ""


def main() -> None:
    yaml = YAML()
    yaml.width = 140
    yaml.indent(mapping=2, sequence=4, offset=2)
    pipeline = yaml.load(DVC_YAML)
    for stage in pipeline["stages"].values():
        kept = [dependency for dependency in stage["deps"] if not str(dependency).endswith((".py", ".jinja"))]
        stage["deps"] = [*kept, *code_dependencies(flow_of(stage))]
    yaml.dump(pipeline, DVC_YAML)


if __name__ == "__main__":
    main()
