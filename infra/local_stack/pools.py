"""Whether a worker would find its pool: a worker of a pool that the server does not know says "started", and nothing comes."""

import base64
import urllib.error
import urllib.request
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from components.errors import BallastError, ParamsError
from components.run_params import PoolName

ANSWER_SECONDS = 10.0


def require_pool_name(pool: str) -> None:
    """It becomes part of a file's name, an address and a command line. Raises ParamsError."""
    try:
        TypeAdapter(PoolName).validate_python(pool)
    except ValidationError:
        raise ParamsError(f"POOL={pool!r} is no name of a pool: a-z, 0-9 and - inside, as in: make worker POOL=gpu") from None


def require_pool(pool: str, client: Mapping[str, str]) -> None:
    """Asks the server at PREFECT_API_URL, with the password of a client; raises BallastError if it has no such pool."""
    api = client["PREFECT_API_URL"]
    headers = {}
    if word := client.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = "Basic " + base64.b64encode(word.encode()).decode()
    try:
        urllib.request.urlopen(
            urllib.request.Request(f"{api}/work_pools/{pool}", headers=headers), timeout=ANSWER_SECONDS
        ).close()
    except urllib.error.HTTPError as error:
        raise BallastError(_explain(pool, api, error.code)) from None
    except OSError as error:
        raise BallastError(
            f"the Prefect server at PREFECT_API_URL={api} does not answer ({error}); on its machine: make stack"
        ) from None


def _explain(pool: str, api: str, status: int) -> str:
    if status == 404:
        return (
            f"the Prefect server at {api} has no work pool {pool!r}; those that it has: .venv/bin/prefect work-pool ls. "
            "A new one is a file in infra/prefect/work_pools, and then: make deploy"
        )
    if status in (401, 403):
        return (
            f"the Prefect server at {api} refuses the call (HTTP {status}): set PREFECT_API_AUTH_STRING to the user:password "
            "that its PREFECT_SERVER_API_AUTH_STRING says (docs/security.md)"
        )
    return f"the Prefect server at {api} does not tell of the work pool {pool!r} (HTTP {status}); on its machine: make stack"
