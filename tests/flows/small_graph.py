"""A throw-away git and DVC repository with a small graph: a matrix, a stage that takes both cells, one that stands alone."""

import subprocess
import sys
from pathlib import Path

import pytest

DVC_YAML = f"""
vars: [{{python: {sys.executable}}}]
stages:
  compare:
    cmd: ${{python}} -c "open('compared', 'w').write(open('out-a').read() + open('out-b').read())"
    deps: [out-a, out-b]
    outs: [compared]
  train:
    matrix:
      name: ${{names}}
    cmd: ${{python}} -c "open('out-${{item.name}}', 'w').write(open('base').read().upper() + '${{item.name}}')"
    deps: [base]
    params:
      - steps.${{item.name}}
    outs:
      - out-${{item.name}}
  prepare:
    cmd: ${{python}} -c "open('base', 'w').write(open('source').read()[:4])"
    deps: [source]
    outs: [base]
  alone:
    cmd: ${{python}} -c "open('lone', 'w').write('x')"
    deps: [source]
    outs: [lone]
"""
PARAMS = "names: [a, b]\nsteps: {a: 1, b: 2}\n"
ORDER = ["prepare", "train@a", "train@b", "compare", "alone"]


def make_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    for name, text in {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS, "source": "base and more"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path
