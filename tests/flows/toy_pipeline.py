"""A throw-away git and DVC repository with five stages that run in a blink, and may be told to fail or to sleep."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["prepare", "train@a", "train@b", "compare", "register"]
DVC_YAML = f"""
vars:
  - python: {sys.executable} stage.py
stages:
  prepare:
    cmd: ${{python}} prepare artifacts/base
    deps: [source]
    params: [num_rows]
    outs: [artifacts/base]
  train:
    matrix:
      name: [a, b]
    cmd: ${{python}} ${{item.name}} artifacts/model-${{item.name}}
    deps: [artifacts/base]
    params: [fail, nap]
    outs:
      - artifacts/model-${{item.name}}
  compare:
    cmd: ${{python}} compare artifacts/report/metrics.json
    deps: [artifacts/model-a, artifacts/model-b]
    metrics:
      - artifacts/report/metrics.json:
          cache: false
  register:
    cmd: ${{python}} register registered
    deps: [artifacts/report/metrics.json]
    outs: [registered]
"""
STAGE = """
import os, pathlib, sys, time
name, out = sys.argv[1:]
params = dict(line.split(": ", 1) for line in open("params.yaml").read().splitlines())
print("hello from", name, "with", [name for name in os.environ if name.startswith("PREFECT")])
for percent in (0, 50, 100):
    print(f"\\\\r{percent:3}%|", end="", file=sys.stderr)
print(file=sys.stderr)
if name == params["fail"]:
    sys.exit("error: no rows in source\\\\nPut some there.")
if name == params["nap"]:
    open("napping", "w").write(str(os.getpid()))
    time.sleep(120)
text = '{"base": {"accuracy": 0.5}, "sft": {"accuracy": 0.98765, "ece": 0.1}}' if name == "compare" else name + params["num_rows"]
pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
pathlib.Path(out).write_text(text)
""".replace("\\\\", "\\")


class Repository:
    def __init__(self, root: Path) -> None:
        self.root = root

    def set(self, **params: object) -> None:
        values = {"fail": "none", "nap": "none", "num_rows": 1, **params}
        (self.root / "params.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))

    def start(self, *words: str, url: str | None = None, code: str | None = None) -> subprocess.Popen[str]:
        """`python -m flows.pipeline`, or the code, in the repository; with the server's URL if there is one."""
        dropped = ("PREFECT_", "DVC_", "BALLAST_")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        environ |= {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(self.root / "prefect-home")}
        environ |= {"PREFECT_API_URL": url} if url else {}
        command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "flows.pipeline", *words]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.root, env=environ, **streams)

    def run(self, *words: str, **options: Any) -> tuple[int, str]:
        process = self.start(*words, **options)
        out, _ = process.communicate()
        return process.returncode, out

    def napper(self) -> int:
        """The pid of the stage that naps, once it does."""
        assert until(lambda: (self.root / "napping").exists() and (self.root / "napping").read_text(), seconds=120)
        return int((self.root / "napping").read_text())


def until(is_so: Callable[[], Any], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(is_so())


def outcomes(out: str) -> dict[str, str]:
    """Stage and state, from the table at the end."""
    return {stage: state for state, stage in re.findall(r"^(\w[\w ]*?) +[\d.]+ s  (\S+)$", out, re.MULTILINE)}


def make_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    from dvc.repo import Repo

    root.mkdir()
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    Repo.init(str(root)).close()
    for name, text in {"dvc.yaml": DVC_YAML, "stage.py": STAGE, "source": "rows"}.items():
        (root / name).write_text(text)
    repository = Repository(root)
    repository.set()
    return repository
