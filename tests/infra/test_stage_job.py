"""The Jobs without Prefect, their commands run for real on a small DVC repository: what becomes of a failure and of a SIGTERM."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.compose_services import ROOT

BIN = Path(sys.executable).parent
OVERLAY = ROOT / "infra" / "kubernetes" / "overlays" / "gpu"
TRAINING = """
import signal, sys, time

def save(number, frame):
    time.sleep(1)  # a checkpoint takes a while
    open("state", "w").write("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
print("it trains", flush=True)
time.sleep(120)
"""


def job(name: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((OVERLAY / f"{name}.yaml").read_text(encoding="utf-8"))
    return next(document["spec"] for document in documents if document["kind"] == "Job")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    for words in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
        subprocess.run(words, cwd=root, env=environ(), check=True)
    subprocess.run(
        ["dvc", "remote", "add", "--quiet", "--default", "storage", tmp_path / "remote"], cwd=root, env=environ(), check=True
    )
    (root / "training.py").write_text(TRAINING)
    stages = {"bad_data": "echo error: no such column >&2; exit 2", "training": f"{sys.executable} training.py"}
    (root / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {name: {"cmd": cmd, "outs": [name]} for name, cmd in stages.items()}})
    )
    return root


def environ(**more: str) -> dict[str, str]:
    path = f"{BIN}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", **more}


def start(repository: Path, stage: str) -> subprocess.Popen[str]:
    """The Job's container, with us in the place of tini."""
    words = job("stage-job")["template"]["spec"]["containers"][0]["args"]
    words = [word.replace("/tmp/repro.log", str(repository.parent / "repro.log")) for word in words]
    assert words[:5] == ["python", "-m", "flows.child_process", "1", "60"]
    words[3] = str(os.getpid())
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=repository, env=environ(STAGE=stage), **pipes)


def test_a_stage_that_says_no_ends_its_job_and_what_dvc_could_not_do_is_tried_again(repository: Path) -> None:
    """DVC's own exit code is 255 for both."""
    final = job("stage-job")["podFailurePolicy"]["rules"][1]
    assert (final["action"], final["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    said = start(repository, "bad_data")
    assert "error: no such column" in said.communicate(timeout=120)[0]
    assert said.returncode in final["onExitCodes"]["values"]
    unknown = start(repository, "nowhere")
    unknown.communicate(timeout=120)
    assert unknown.returncode == 255


def test_a_stage_whose_pod_is_told_to_end_saves_its_state_first(repository: Path) -> None:
    running = start(repository, "training")
    try:
        assert running.stdout is not None
        assert any(line == "it trains\n" for line in running.stdout)
        running.terminate()
        running.communicate(timeout=60)
    finally:
        running.kill()
    assert (repository / "state").read_text() == "saved"
    assert running.returncode == 143


@pytest.mark.parametrize("name", ["stage-job", "multi-node-job"])
def test_a_job_has_more_time_to_end_than_its_supervisor_takes(name: str) -> None:
    pod = job(name)["template"]["spec"]
    words = pod["containers"][0]["args"]
    assert words[:4] == ["python", "-m", "flows.child_process", "1"]
    assert int(words[4]) < pod["terminationGracePeriodSeconds"]
