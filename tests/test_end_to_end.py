"""The whole pipeline through `dvc repro`, on a shrunken world, in a copy of the repository."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("components", "flows", "inputs", "dvc.yaml", "params.yaml", ".dvc/config", ".dvcignore", ".gitignore")
CELLS = [f"{preset}-0" for preset in ("sft", "uncertainty_aware", "gain_aware")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the repository with small sizes, after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        source = ROOT / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    (folder / "mlruns").mkdir()
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    edit_params(folder, shrink)
    repro(folder)
    yield folder


def shrink(params: dict[str, Any]) -> None:
    params["presets"] = ["sft", "uncertainty_aware", "gain_aware"]
    params["seeds"] = [0]
    params["world"].update(num_train_examples=48, num_validation_examples=12, num_test_examples=24, num_ood_items_per_task=8)
    params["base_model"].update(num_steps=60, batch_size=16, hidden_size=32)
    params["training"].update(num_steps=12, batch_size=8, micro_batch_size=4, save_every_steps=6, log_every_steps=2)
    params["token_scores"].update(num_members=2, num_steps=6)
    params["comparison"]["num_resamples"] = 100


def edit_params(folder: Path, edit: Any) -> None:
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text())
    edit(params)
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_", "DVC_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


def dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repro(folder: Path) -> list[str]:
    """The stages that ran, in order."""
    lines = dvc(folder, "repro").splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def changed_stages(folder: Path) -> set[str]:
    """Stages whose own inputs changed (not those that wait for them, nor the one that always looks)."""
    return set(json.loads(dvc(folder, "status", "--json"))) - {"follow_champion"}


def test_every_stage_leaves_its_artifacts(project: Path) -> None:
    for name in CELLS:
        assert list((project / "artifacts/models" / name).glob("*.safetensors"))
        assert (project / f"artifacts/evaluations/{name}.json").exists()
    report = (project / "artifacts/report/report.html").read_text()
    assert all(preset in report for preset in ("base", "sft", "uncertainty_aware", "gain_aware"))
    assert json.loads((project / "artifacts/registration.json").read_text())["version"] == 1


def test_a_second_repro_only_looks_who_is_champion(project: Path) -> None:
    assert repro(project) == ["follow_champion"]


def test_nothing_but_safetensors_and_text_is_written(project: Path) -> None:
    suffixes = {file.suffix for file in (project / "artifacts").rglob("*") if file.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".arrow", ".csv", ".html", ".png", ".jinja", ".md", ".parquet", ""}, (
        suffixes
    )


def test_editing_one_objective_knob_touches_that_preset_alone(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    edit_params(project, lambda params: params["objective"]["uncertainty_aware"].update(keep=0.25))
    assert changed_stages(project) == {"post_train@uncertainty_aware-0", "compare"}
    (project / "params.yaml").write_text(before)


@pytest.mark.parametrize("module", ["components/evaluation/likelihood.py", "components/evaluation/comparison.py"])
def test_editing_an_evaluation_file_reruns_no_training(project: Path, module: str) -> None:
    file = project / module
    before = file.read_text()
    file.write_text(before + "\n# edited\n")
    touched = changed_stages(project)
    file.write_text(before)
    assert touched and all(name.startswith(("evaluate_", "compare", "register_model")) for name in touched)


def test_the_registered_model_generates_in_a_process_that_knows_nothing_of_us(project: Path, tmp_path: Path) -> None:
    script = (
        "import mlflow, sys\n"
        f"mlflow.set_tracking_uri('sqlite:///{project}/mlruns/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/ballast@challenger')\n"
        "print('ANSWER', model.predict([{'messages': [{'role': 'user', 'content': 'cipher s1 s2'}]}]))\n"
    )
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env={**environment(), **quiet},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "ANSWER" in done.stdout, done.stderr


def test_the_model_version_carries_its_lineage(project: Path) -> None:
    script = (
        "import mlflow, json\n"
        f"client = mlflow.MlflowClient('sqlite:///{project}/mlruns/mlflow.db')\n"
        "print('TAGS', json.dumps(client.get_model_version_by_alias('ballast', 'challenger').tags))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=200)
    tags = json.loads(done.stdout.partition("TAGS ")[2])
    wanted = (
        "git.commit",
        "dvc.lock.sha256",
        "ballast.base_fingerprint",
        "ballast.data_fingerprint",
        "ballast.cache_fingerprint",
    )
    assert all(tags[name] for name in (*wanted, "gate.verdict"))


def test_a_champion_made_by_hand_is_evaluated(project: Path) -> None:
    """Last, for it changes who is champion. The command is what `make promote` calls."""
    words = ["--why", "it's the first", "--who", "anna", "--force"]
    subprocess.run([sys.executable, "-m", "flows.promote", "1", *words], cwd=project, env=environment(), check=True, timeout=200)
    assert {"follow_champion", "evaluate_champion", "compare"} <= set(repro(project))
    champion = json.loads((project / "artifacts/champion.json").read_text())["champion"]
    assert (champion["name"], champion["version"]) == ("ballast", 1)
    assert json.loads((project / "artifacts/evaluations/champion.json").read_text())["preset"] == "champion"
