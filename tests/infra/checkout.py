"""A checkout to throw away: the project's code beside a toy graph, so that workers, locks and ports are nobody else's."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from components.artifacts import ROOT

DVC_YAML = """
stages:
  where:
    cmd: pwd > where.txt
    outs: [where.txt]
  nap:
    cmd: echo $$ > napping; trap 'echo kept > checkpoint; exit 143' TERM; sleep 300 & wait
    outs: [slept]
"""


class Checkout:
    def __init__(self, root: Path) -> None:
        self.root = root
        ignored = shutil.ignore_patterns("__pycache__")
        for folder in ("components", "flows", "infra"):
            shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
        shutil.copy(ROOT / "params.yaml", root)
        (root / "dvc.yaml").write_text(DVC_YAML)
        subprocess.run(["git", "init", "-q"], cwd=root, check=True)
        Repo.init(str(root)).close()

    def environ(self, **variables: str) -> dict[str, str]:
        dropped = ("PREFECT_", "DVC_", "BALLAST_", "MLFLOW_")
        known = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {**known, "PREFECT_HOME": str(self.root / "client"), "DVC_NO_ANALYTICS": "1", **variables}

    def run(self, module: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m module words` in it, with these variables."""
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, cwd=self.root, env=self.environ(**variables), capture_output=True, text=True, timeout=240)


def ask(url: str, path: str, body: Any = None) -> Any:
    """What the Prefect server at `url` (it ends in /api) answers: to a POST if there is a body, otherwise to a GET.

    Prefect's own client tries again after 503, which says that its database was busy; and so do we.
    """
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/{path}", content, {"Content-Type": "application/json"})
    for seconds in (0.5, 1.0, 2.0, 4.0, None):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or seconds is None:
                raise
            time.sleep(seconds)
    raise AssertionError("unreachable")


def start_run(url: str, deployment: str, **parameters: Any) -> str:
    """A flow run of the deployment, as the button in the UI makes it; its id."""
    found = ask(url, f"deployments/name/{deployment}")["id"]
    return str(ask(url, f"deployments/{found}/create_flow_run", {"parameters": parameters})["id"])


def state_of(url: str, run: str) -> str:
    return str(ask(url, f"flow_runs/{run}")["state"]["name"])


def until(is_so: Callable[[], Any], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(is_so())
