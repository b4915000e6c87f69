"""Laws of a stage that runs as two gloo ranks, on a shrunken world: the model of one process, whatever is killed on the way."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from components.artifacts import read_csv
from tests.test_end_to_end import COPIED, ROOT, edit_params, environment

CELL = "uncertainty_aware-0"
RESULTS = ("models", "curves", "probes", "costs")
LIMIT_SECONDS = 200
STOP_SECONDS = 30
"""Ten are asked for and two to four measured (docs/many-gpus.md); a machine that runs other tests, too, takes its time."""
PREPARE = """
from flows.cache_teacher import cache_teacher
from flows.post_train import post_train
from flows.prepare_base import prepare_base
from flows.prepare_data import prepare_data
from flows.score_tokens import score_tokens
from flows.stage_runner import run_here

for stage in (prepare_base, prepare_data, cache_teacher, score_tokens):
    assert run_here(stage, []) == 0
assert run_here(post_train, ["uncertainty_aware", "0"]) == 0
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the repository with small sizes, everything before the training made, and one training by one process."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    (folder / "mlruns").mkdir()
    edit_params(folder, shrink)
    done = subprocess.run(
        [sys.executable, "-c", PREPARE], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    keep(folder, "single")
    yield folder


def shrink(params: dict[str, Any]) -> None:
    objective = {"uncertainty_aware": params["objective"]["uncertainty_aware"]}
    params.update(presets=["uncertainty_aware"], seeds=[0], objective=objective)
    params["registration"]["candidate"] = "uncertainty_aware"
    params["world"].update(num_train_examples=48, num_validation_examples=12, num_test_examples=24, num_ood_items_per_task=8)
    params["base_model"].update(num_steps=60, batch_size=16, hidden_size=32)
    params["token_scores"]["reference"] = "none"
    params["training"].update(num_steps=60, batch_size=8, micro_batch_size=2, save_every_steps=5, log_every_steps=1)
    params["training"]["early_stopping"].update(enabled=True, every_steps=5, patience=2, min_delta_nats=0.02)
    params["probe"]["every_steps"] = 10


def launch_params(folder: Path, engine: str, num_processes: int, **changes: Any) -> None:
    wanted = {"engine": engine, "num_processes": num_processes, "config": None, **changes}
    edit_params(folder, lambda params: params["launch"].update(wanted))


def start(folder: Path) -> subprocess.Popen[str]:
    """The stage, in the background, without what an earlier run has left."""
    for name in RESULTS:
        shutil.rmtree(folder / "artifacts" / name, ignore_errors=True)
    command = [sys.executable, "-m", "flows.post_train", *CELL.rsplit("-", 1)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), **pipes)


def end(stage: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, errors = stage.communicate(timeout=LIMIT_SECONDS)
    return stage.returncode, said, errors


def keep(folder: Path, name: str) -> None:
    for result in RESULTS:
        shutil.move(folder / "artifacts" / result, folder / "kept" / name / result)


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def engine(request: pytest.FixtureRequest, project: Path) -> str:
    """An engine whose two ranks have trained the cell without interruption; what they left is kept under its name."""
    launch_params(project, request.param, 2)
    code, said, errors = end(start(project))
    assert code == 0, errors
    assert said.count("post_train@") == 1, "the first rank tells, once"
    keep(project, request.param)
    return str(request.param)


def curve(folder: Path) -> list[dict[str, float]]:
    return read_csv(folder / "curves" / f"{CELL}.csv", made_by="post_train")


def probe(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probes" / f"{CELL}.json").read_text())
    return found


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "models" / CELL / "model.safetensors")


def processes(folder: Path) -> dict[str, int]:
    """Living processes of the launch of this project: ranks by their number, their launcher as `launcher`."""
    mark = f"BALLAST_RANK_REPORTS={folder}/".encode()
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            variables = (place / "environ").read_bytes().split(b"\0")
            is_zombie = (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if any(one.startswith(mark) for one in variables) and not is_zombie:
            rank = next((one[5:].decode() for one in variables if one.startswith(b"RANK=")), "launcher")
            found[rank] = int(place.name)
    return found


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return found


def checkpoints(folder: Path) -> set[str]:
    return {place.parent.name for place in folder.glob(".work/post_train/*/checkpoint-*/seal.json")}


@pytest.mark.multi_process
def test_two_ranks_leave_the_model_of_one_process(project: Path, engine: str) -> None:
    one, two = project / "kept/single", project / "kept" / engine
    assert [line["step"] for line in curve(one)] == [line["step"] for line in curve(two)]
    for alone, shared in zip(curve(one), curve(two), strict=True):
        for name in ("loss", "nll", "selected_fraction", "distilled_fraction", "threshold", "learning_rate"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), (name, alone["step"])
    expected = weights(one)
    assert expected.keys() == weights(two).keys()
    differences = [float((weight - expected[name]).abs().max()) for name, weight in weights(two).items()]
    assert max(differences) < 1e-3


@pytest.mark.multi_process
def test_two_ranks_stop_early_where_one_process_does(project: Path, engine: str) -> None:
    one, two = probe(project / "kept/single"), probe(project / "kept" / engine)
    assert two["best_step"] == one["best_step"] > 0
    assert len(one["validation_looks"]) < 12, "it ends before the last step"
    for alone, shared in zip(one["validation_looks"], two["validation_looks"], strict=True):
        assert shared["step"] == alone["step"] and shared["nll"] == pytest.approx(alone["nll"], rel=1e-4)
    for alone, shared in zip(one["steps"], two["steps"], strict=True):
        assert shared["step"] == alone["step"] and shared["selected_fraction"] == pytest.approx(alone["selected_fraction"])
        assert shared["validation"]["nll"] == pytest.approx(alone["validation"]["nll"], rel=1e-4)


@pytest.mark.multi_process
def test_what_ranks_leave_has_the_files_of_one_process_and_counts_once(project: Path, engine: str) -> None:
    one, two = project / "kept/single", project / "kept" / engine
    for file in (one / "models" / CELL).iterdir():
        other = two / "models" / CELL / file.name
        assert other.exists() and (file.suffix == ".safetensors" or file.read_bytes() == other.read_bytes()), file.name
    costs, expected = (json.loads((place / f"costs/post_train-{CELL}.json").read_text()) for place in (two, one))
    assert costs["num_processes"] == 2
    assert all(costs[name] == expected[name] for name in ("num_steps", "num_input_tokens", "num_target_tokens"))
    with sqlite3.connect(project / "mlruns/mlflow.db") as store:
        runs = [status for (status,) in store.execute("select status from runs where name = ?", (CELL,))]
    assert len(runs) == 1 + len([name for name in ("ddp", "fsdp2") if (project / "kept" / name).exists()]), "a run a training"


@pytest.mark.multi_process
def test_a_training_of_two_ranks_survives_what_is_killed_and_ends_in_the_same_bits(project: Path) -> None:
    """SIGTERM to the stage; SIGKILL to a rank; SIGKILL to the stage; then to the end."""
    if not (project / "kept/ddp").exists():
        pytest.skip("compares with the ddp run of the tests before")
    launch_params(project, "ddp", 2)

    stage = start(project)
    wait_for(lambda: checkpoints(project))
    told = time.monotonic()
    stage.send_signal(signal.SIGTERM)
    code, _, errors = end(stage)
    assert code == 143 and time.monotonic() - told < STOP_SECONDS, errors
    assert "a checkpoint is kept, the same command goes on from it" in errors and "Traceback" not in errors
    assert not processes(project) and not (project / "artifacts/models").exists()
    first = checkpoints(project)

    stage = start(project)
    wait_for(lambda: checkpoints(project) - first)
    killed = processes(project)["1"]
    os.kill(killed, signal.SIGKILL)
    code, _, errors = end(stage)
    assert code == 137 and f"error: rank 1 (process {killed}) was killed by signal 9 (SIGKILL)" in errors, errors
    assert "Traceback" not in errors and not processes(project)
    second = checkpoints(project)

    stage = start(project)
    wait_for(lambda: checkpoints(project) - second)
    stage.kill()
    end(stage)
    wait_for(lambda: not processes(project))

    code, _, errors = end(start(project))
    assert code == 0, errors
    whole = project / "kept/ddp"
    expected = weights(whole)
    assert all(bool((weight == expected[name]).all()) for name, weight in weights(project / "artifacts").items())
    assert curve(project / "artifacts") == curve(whole) and probe(project / "artifacts") == probe(whole)
    assert json.loads((project / f"artifacts/costs/post_train-{CELL}.json").read_text())["resumed_at_step"] > 0


@pytest.mark.multi_process
def test_what_cannot_be_shared_is_refused_before_any_rank_is_started(project: Path) -> None:
    launch_params(project, "ddp", 3)
    code, _, errors = end(start(project))
    assert code == 2 and "batch_size 8 is not a multiple of micro_batch_size 2 x 3 processes" in errors
    launch_params(project, "deepspeed_zero3", 2)
    code, _, errors = end(start(project))
    assert code == 2 and "early_stopping cannot keep and put back weights that DeepSpeed holds" in errors
    edit_params(project, lambda params: params["training"]["early_stopping"].update(enabled=False))
    code, _, errors = end(start(project))
    assert code == 2 and "pip install deepspeed" in errors
