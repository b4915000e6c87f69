"""How a command that changes the registry runs: words of its own on the command line, and a Prefect flow run where one is kept.

A promotion is a person's act, so it takes who and why as arguments; everything else still comes from params.yaml.
"""

import getpass
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from components.errors import BallastError
from flows.stage_runner import QUIET, tracked


def run_by_hand(function: Callable[..., dict[str, Any]], cell: list[str], **arguments: Any) -> NoReturn:
    """Run it and end the process: 0, or the exit code of the error, which becomes one message."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
        called = tracked(function, cell) if os.environ.get("PREFECT_API_URL") else function
        result = called(**arguments)
    except BallastError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{function.__name__}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    sys.exit(0)


def name_user() -> str:
    """Git's user, or the login; empty where the machine knows neither (the command then asks for WHO)."""
    parts = [_git_config("user.name"), _git_config("user.email")]
    if parts[0]:
        return f"{parts[0]} <{parts[1]}>" if parts[1] else parts[0]
    try:
        return parts[1] or getpass.getuser()
    except (OSError, KeyError):
        return ""


def _git_config(key: str) -> str:
    try:
        return subprocess.run(["git", "config", key], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
