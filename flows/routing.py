"""Which stage runs where: the routing table of params.yaml, read alone (the rest of the file is the stages' business)."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from components.errors import ParamsError
from components.run_params import HERE, RoutingParams
from flows.dvc_graph import Stage
from flows.schedule import Places


class Routing(Places):
    """The table, and what follows from it for one pipeline. `here`: everything runs in its own process group."""

    def __init__(self, params: RoutingParams, *, here: bool = False) -> None:
        self.params, self.here = params, here

    def pool_of(self, stage: Stage) -> str:
        return HERE if self.here else self.params.route(stage.address)

    def num_at_once(self, pool: str) -> int:
        return self.params.num_at_once(pool)

    def is_remote(self, pool: str) -> bool:
        return self.params.pools[pool].disk == "remote"


def read_routing(root: Path, *, here: bool = False) -> Routing:
    """Raises ParamsError, which names the place in params.yaml; a file without the section routes nothing."""
    section = _read_params(root).get("routing")
    try:
        return Routing(RoutingParams.model_validate(section or {}), here=here)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("routing", *first["loc"]))
        raise ParamsError(f"params.yaml: {place}: {first['msg']} (found {first['input']!r})") from None


def num_gpus(stage: Stage, root: Path) -> int:
    """GPUs that it works on: one if it takes `compute`, as many as processes if it takes `launch`, too; 0 for any other."""
    if "compute" not in stage.sections:
        return 0
    launch = _read_params(root).get("launch") or {}
    return int(launch.get("num_processes", 1)) if "launch" in stage.sections else 1


def _read_params(root: Path) -> dict[str, Any]:
    try:
        params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise ParamsError(f"{root / 'params.yaml'} cannot be read: {error}") from error
    return params if isinstance(params, dict) else {}
