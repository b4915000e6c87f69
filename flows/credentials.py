"""Credentials for what a stage's process talks to (the DVC remote, above all), out of a Prefect block.

    from prefect.blocks.system import Secret
    Secret(value={"AWS_ACCESS_KEY_ID": "…", "AWS_SECRET_ACCESS_KEY": "…"}).save("ballast-remote")

The block `ballast-remote` is of the type Secret; its value is a table of environment variables. It is read where PREFECT_API_URL
is set, at the moment of use, and goes into the environment of the child processes alone. Without the block the environment of the
worker itself and `.dvc/config.local` serve. Nothing of it is written to params.yaml, dvc.lock, git or a log.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from components.errors import BallastError

BLOCK = "ballast-remote"


def child_environ() -> dict[str, str]:
    """The environment of a DVC command: ours and the block's, without Prefect's (a stage would make a flow run of itself)."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**ours, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1", **read_credentials()}


def read_credentials() -> dict[str, str]:
    """The environment variables in the block; none without a server or without the block."""
    if not os.environ.get("PREFECT_API_URL"):
        return {}
    from prefect.blocks.system import Secret

    try:
        load: Any = Secret.load
        block = load(BLOCK, _sync=True)
    except ValueError as error:
        if "Unable to find block document" in str(error):
            return {}
        raise BallastError(f"the Prefect block secret/{BLOCK} cannot be read: {type(error).__name__}; save it anew") from None
    except Exception as error:  # its text may hold the value
        raise BallastError(
            f"the Prefect server cannot be asked for the block secret/{BLOCK} ({type(error).__name__}); "
            "see that PREFECT_API_URL is right: curl $PREFECT_API_URL/health"
        ) from None
    return parse_credentials(block.get())


def parse_credentials(value: object) -> dict[str, str]:
    """A table of strings, or its JSON text, as `prefect block create secret` takes it. A message never shows a value."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise BallastError(
            f"the Prefect block secret/{BLOCK} must be a table of environment variables, names and values being text, "
            'for example {"AWS_ACCESS_KEY_ID": "…", "AWS_SECRET_ACCESS_KEY": "…"}; save it anew'
        )
    return dict(value)
