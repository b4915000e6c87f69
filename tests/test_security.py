"""Laws of the repository as an attacker finds it: what the code must not contain, and what planted files must not achieve."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from components.artifacts import ROOT
from components.errors import ArtifactError, ModelError, ParamsError
from components.evaluation.item_table import read_evaluation, write_evaluation
from components.model_sources import describe_folder
from components.models import load_model, load_tokenizer
from components.params import BaseModelParams, load_params
from components.plain_names import plain_name
from components.sealed_manifest import seal_of
from components.teacher_cache.format import MANIFEST, read_manifest
from tests.conftest import build_cache, build_model, build_rows

FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name and (ROOT / name).is_file()
]
CODE = [path for path in FILES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"]
PICKLING = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "cPickle"}
RUNNING = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "commands.getoutput", "subprocess.getoutput", "subprocess.getstatusoutput"}
ALLOWED: dict[tuple[str, str], str] = {
    ("components/tracking_models.py", "yaml.load"): "with a safe loader, in C where there is one",
    ("infra/sync_dvc_deps.py", "yaml.load"): "ruamel's round trip loader, which makes no objects, on our own dvc.yaml",
}
"""(file, what): why it may."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def findings(path: Path) -> Iterator[str]:
    """What could run code that data brought along, in one module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in PICKLING)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLING:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            name = called(node)
            if name in RUNNING | SHELLS or name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                yield name
            if name in ("torch.load", "load_state_dict_from_url") and keywords.get("weights_only") != "True":
                yield f"{name} without weights_only=True"
            if keywords.get("shell", "False") != "False":
                yield "shell=True"
            if keywords.get("trust_remote_code", "False") != "False":
                yield "trust_remote_code"
            if keywords.get("allow_pickle", "False") != "False":
                yield "allow_pickle"
            if name.endswith("extractall") and keywords.get("filter") != "'data'":
                yield "extractall without filter='data'"


def test_nothing_in_the_code_unpickles_evaluates_or_gives_a_text_to_a_shell() -> None:
    assert len(CODE) > 200, "the test must find the house"
    found = {(name_of(path), what) for path in CODE for what in findings(path)}
    assert found == ALLOWED.keys(), "find another way, or give its reason in ALLOWED"


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("subprocess.run(text, shell=True)", "shell=True"),
        ("os.system(text)", "os.system"),
        ("eval(text)", "eval"),
        ("yaml.load(text)", "yaml.load"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "trust_remote_code"),
        ("AutoModel.from_pretrained(name, trust_remote_code=anything)", "trust_remote_code"),
        ("numpy.load(file, allow_pickle=True)", "allow_pickle"),
        ("tar.extractall(folder)", "extractall without filter='data'"),
    ],
)
def test_the_search_finds_each_kind(tmp_path: Path, code: str, what: str) -> None:
    (tmp_path / "planted.py").write_text(code)
    assert list(findings(tmp_path / "planted.py")) == [what]


def test_every_model_and_tokenizer_is_loaded_with_remote_code_switched_off() -> None:
    """Named at each call: a default may change, and a release has ignored it (CVE-2026-5241)."""
    silent = []
    for path in CODE:
        if path.relative_to(ROOT).parts[0] not in ("components", "flows"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_load = isinstance(node, ast.Call) and re.search(r"Auto\w+\.from_pretrained$", called(node))
            if is_load and not any(keyword.arg == "trust_remote_code" for keyword in node.keywords):
                silent.append((name_of(path), node.lineno))
    assert silent == []


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that a bomb makes; it must not be there in the end."""
    mark = tmp_path / "was-run"
    yield mark
    assert not mark.exists(), "code out of a data file was run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def plant(file: Path, mark: Path) -> None:
    torch.save({"weight": torch.zeros(1), "bomb": Bomb(mark)}, file)


def test_a_planted_bomb_would_go_off(tmp_path: Path) -> None:
    """What the other tests rely on."""
    plant(tmp_path / "bomb.pt", tmp_path / "gone-off")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "gone-off").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"])
def test_a_pickle_in_a_model_folder_is_never_opened(folder: Path, mark: Path, name: str) -> None:
    plant(folder / name, mark)
    load_model(folder)
    assert name not in describe_folder(folder, BaseModelParams(source="local"))["files"]
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError, match="pickled weights are not read"):
        load_model(folder)
    with pytest.raises(ModelError, match="pickled weights are not read"):
        describe_folder(folder, BaseModelParams(source="local"))


def test_a_pickle_that_is_called_safetensors_is_refused(folder: Path, mark: Path) -> None:
    plant(folder / "model.safetensors", mark)
    with pytest.raises(ModelError):
        load_model(folder)


def test_a_folder_that_brings_its_own_code_is_refused_and_its_code_not_run(folder: Path, mark: Path) -> None:
    (folder / "modeling.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Model: ...\n")
    for file in ("config.json", "tokenizer_config.json"):
        (folder / file).write_text(
            '{"model_type": "own", "auto_map": {"AutoConfig": "modeling.Model", "AutoTokenizer": ["modeling.Model", null]}}'
        )
    with pytest.raises(ModelError, match="runs no code from a model folder"):
        describe_folder(folder, BaseModelParams(source="local"))
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError):
            load(folder)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0123456", "0" * 39, "0" * 41, "G" * 40, "../" + "0" * 37])
def test_a_hub_model_or_set_is_pinned_to_forty_digits(tmp_path: Path, revision: str | None) -> None:
    model = {"source": "hub", "hub_id": "org/name", "revision": revision}
    with pytest.raises(ValueError, match=r"revision|40 hexadecimal"):
        BaseModelParams.model_validate(model)
    from components.data_params import HubDataParams

    with pytest.raises(ValueError, match="revision"):
        HubDataParams.model_validate({"hub_id": "org/name", "revision": revision})


BAD_NAMES = [
    "../x",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "",
    ".hidden",
    "--force",
    "-f",
    "a\0b",
    "a\nb",
    "x" * 201,
    "é" * 5,
    "$HOME",
    None,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_that_leads_elsewhere_is_none(name: str | None) -> None:
    with pytest.raises(ArtifactError, match="not the plain name of a file"):
        plain_name(name, "manifest.json")


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "uncertainty_aware-0", "base", "champion", "model.v2+cpu=1"])
def test_the_names_that_we_write_are_plain(name: str) -> None:
    assert plain_name(name, "anywhere") == name


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname"])
def test_a_cache_manifest_that_names_a_file_elsewhere_is_refused_though_its_seal_is_right(tmp_path: Path, name: str) -> None:
    build_cache(tmp_path, build_model(), build_rows(4))
    import dataclasses

    from components.sealed_manifest import write_sealed

    manifest = read_manifest(tmp_path / "cache")
    first, *others = manifest.shards
    forged = dataclasses.replace(manifest, shards=[dataclasses.replace(first, name=name), *others])
    (tmp_path / "cache" / MANIFEST).unlink()
    write_sealed(tmp_path / "cache" / MANIFEST, forged)
    assert seal_of(forged) != seal_of(manifest)
    with pytest.raises(ArtifactError, match=r"manifest\.json names.*not the plain name"):
        read_manifest(tmp_path / "cache")


def test_an_evaluation_is_neither_written_nor_read_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    for name in ("../escaped", str(tmp_path / "escaped")):
        with pytest.raises(ArtifactError, match="plain name"):
            write_evaluation(name, {"absent": "no"}, tmp_path / "evaluations")
        with pytest.raises(ArtifactError, match="plain name"):
            read_evaluation(name, folder=tmp_path / "evaluations")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations"]


@pytest.mark.parametrize("word", ["../../etc", "/etc", "-f"])
def test_the_cell_on_a_stage_s_command_line_is_a_plain_name(word: str) -> None:
    from flows.evaluate_ood import evaluate_ood
    from flows.stage_runner import bind_arguments

    with pytest.raises(ArtifactError, match="plain name"):
        bind_arguments(evaluate_ood, [word, "0"], load_params())


@pytest.mark.parametrize("place", ["presets", "registration.model_name", "data.path", "base_model.path"])
def test_a_name_in_params_cannot_lead_elsewhere_and_no_path_holds_a_zero_byte(tmp_path: Path, place: str) -> None:
    import yaml

    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    if place == "presets":
        raw["objective"]["../x"] = {"preset": "sft"}
        raw["presets"] = ["../x"]
    else:
        section, key = place.split(".")
        raw[section][key] = "../x y" if key == "model_name" else "inputs\0/etc"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ParamsError, match=re.escape(place.partition(".")[2] or "objective")):
        load_params(tmp_path / "params.yaml")


OPEN_ADDRESS = re.compile(
    r"--host[= ]0\.0\.0\.0|(?:host|HOST)[\"']?\s*[:=]\s*[\"']?0\.0\.0\.0"
    r"|--host\s*[\"',]+\s*[\"']0\.0\.0\.0|\(\s*[\"']0\.0\.0\.0[\"']"
)
BEHIND_A_PROXY = ("infra/compose", "infra/docker", "infra/kubernetes")
"""A container's own loopback is nobody else's: inside they listen on all its addresses, and ports are published on 127.0.0.1."""
ASKED_FOR = {
    "tests/infra/test_local_stack.py": "reads the settings of somebody who asks for it, and starts no server with them",
    "tests/infra/test_topology.py": "takes it out of the commands of compose.yaml before it runs them",
}
READ = {".py", ".sh", ".yaml", ".yml", ".json", ".toml", ".md", ".ini", ".env", ""}


@pytest.mark.parametrize(
    "line",
    [
        "mlflow server --host 0.0.0.0 --port 5000",
        'command = ["--host", "0.0.0.0"]',
        "PREFECT_SERVER_API_HOST=0.0.0.0",
        "host: 0.0.0.0",
        'server.bind(("0.0.0.0", 80))',
    ],
)
def test_the_search_for_open_addresses_finds_each_form(line: str) -> None:
    assert OPEN_ADDRESS.search(line)


def test_no_server_that_we_start_or_tell_anybody_to_start_listens_to_the_network() -> None:
    found = [
        (name_of(path), line.strip())
        for path in FILES
        if path.suffix in READ and path != Path(__file__) and not name_of(path).startswith((*BEHIND_A_PROXY, *ASKED_FOR))
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if OPEN_ADDRESS.search(line) and "allowed-hosts" not in line
    ]
    assert found == []


def test_a_command_that_starts_a_server_names_loopback_or_a_server_whose_default_it_is() -> None:
    """`mlflow server` and `prefect server start` listen on 127.0.0.1 unless told otherwise; their --host says nothing else."""
    hosts = re.compile(r"(?:mlflow server|prefect server start)[^\n`]*--host[= ](\S+)")
    told = [
        (name_of(path), host) for path in FILES if path.suffix in READ for host in hosts.findall(path.read_text(errors="replace"))
    ]
    others = [(name, host) for name, host in told if not host.startswith("127.0.0.1") and not name.startswith(BEHIND_A_PROXY)]
    assert [entry for entry in others if entry[0] not in ("docs/security.md", "tests/test_security.py")] == []


@pytest.mark.parametrize("server", ["mlflow", "prefect"])
def test_the_servers_default_is_loopback(server: str) -> None:
    code = {
        "mlflow": "import mlflow.cli; print(next(p.default for p in mlflow.cli.server.params if p.name == 'host'))",
        "prefect": "from prefect.settings import PREFECT_SERVER_API_HOST; print(PREFECT_SERVER_API_HOST.value())",
    }[server]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["127.0.0.1"]


def test_published_ports_of_containers_are_on_loopback() -> None:
    """In every compose file: a port without an address is open to the network, past the machine's firewall."""
    import yaml

    for path in [path for path in FILES if path.name.startswith("compose") and path.suffix in (".yaml", ".yml")]:
        services = yaml.safe_load(path.read_text(encoding="utf-8")).get("services", {})
        for name, service in services.items():
            for port in service.get("ports", []):
                address = port.get("host_ip", "") if isinstance(port, dict) else str(port)
                assert address.startswith(("127.0.0.1", "${")), f"{name_of(path)}: {name} publishes {port}"
                if address.startswith("${"):
                    assert ":-127.0.0.1}" in address, f"{name_of(path)}: {name}: the default of {port} is not loopback"
