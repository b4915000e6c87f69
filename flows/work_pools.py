"""Work pools as the files of infra/prefect/work_pools say: where flow runs go, and what a worker starts for one.

A file holds one pool: name, type, description, perhaps concurrency_limit, and base_job_template. A new file is a new pool, and
flows.deployments makes a deployment `stage/<pool>` for it. Prefect is imported by the caller's client, not here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.artifacts import ROOT
from components.errors import BallastError, InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import WorkPool

FOLDER = ROOT / "infra" / "prefect" / "work_pools"
FIELDS = {"name", "type", "description", "base_job_template"}
OPTIONAL_FIELDS = {"concurrency_limit"}


class Pool(NamedTuple):
    name: str
    type: str
    description: str
    base_job_template: dict[str, Any]
    concurrency_limit: int | None = None


def read_pools(folder: Path = FOLDER) -> list[Pool]:
    """Every pool that has a file, by name."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder} has no work pools; git restore infra/prefect/work_pools brings ours back")
    return [read_pool(file) for file in files]


def read_pool(file: Path) -> Pool:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error})") from error
    if not isinstance(fields, dict) or not FIELDS <= fields.keys() <= FIELDS | OPTIONAL_FIELDS:
        raise InputError(f"{file} must have {sorted(FIELDS)} and may have {sorted(OPTIONAL_FIELDS)}, nothing else")
    if fields["name"] != file.stem:
        raise InputError(f"{file} describes the pool {fields['name']!r}; a pool and its file have the same name")
    check_template(fields["base_job_template"], file)
    return Pool(**fields)


def check_template(template: dict[str, Any], file: Path) -> None:
    """A variable that job_configuration does not refer to has no effect, and Prefect says nothing about it."""
    used = json.dumps(template["job_configuration"])
    idle = [name for name in template["variables"]["properties"] if f"{{{{ {name} }}}}" not in used]
    if idle:
        raise InputError(f"{file}: job_configuration refers to no {', '.join(idle)}; write it as {{{{ {idle[0]} }}}} there")


def apply_pools(client: "SyncPrefectClient", pools: Sequence[Pool]) -> None:
    """Create what the server lacks, update the rest. A pool that is paused by hand stays paused."""
    for pool in pools:
        known = find_pool(client, pool.name)
        if known is not None and known.type != pool.type:
            raise BallastError(
                f"the server has a work pool {pool.name} of type {known.type}, here it is {pool.type}, and a type cannot change. "
                f"Once nobody uses the old one: prefect work-pool delete {pool.name}"
            )
        (create_pool if known is None else update_pool)(client, pool)


def find_pool(client: "SyncPrefectClient", name: str) -> "WorkPool | None":
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None


def create_pool(client: "SyncPrefectClient", pool: Pool) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    client.create_work_pool(WorkPoolCreate(**pool._asdict()))


def update_pool(client: "SyncPrefectClient", pool: Pool) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    fields = {name: value for name, value in pool._asdict().items() if name not in ("name", "type")}
    client.update_work_pool(pool.name, WorkPoolUpdate(**fields))
