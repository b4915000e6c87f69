"""Laws of what a container engine or a cluster is handed: every file against its schema, and what no schema asks for."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.local_stack.worker import FLOW_GRACE_SECONDS, WORKER_GRACE_SECONDS
from tests.infra.compose_services import COMPOSE, ROOT, read_services, variables_of

INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent
KUBERNETES = INFRA / "kubernetes"
VERSIONS = ("1.31", "1.37")
"""Of Kubernetes: the oldest that has all we use as stable, and the newest whose schema we have."""
MANIFESTS = sorted(file for file in KUBERNETES.rglob("*.yaml") if file.name != "kustomization.yaml")
OURS = ("ballast-cpu", "ballast-gpu")
ONE_OFF = {"store-buckets", "prefect-migrate", "mlflow-migrate", "deployments"}


def objects_of(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The base and the overlay as `kubectl kustomize` makes them, with the examples' secrets."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the kustomizations were not built, only their raw files are checked")
    folder = tmp_path_factory.mktemp("kustomize") / "infra"
    shutil.copytree(INFRA, folder, ignore=shutil.ignore_patterns("secrets.env", "stage-secrets.env"))
    for example in folder.rglob("*secrets.env.example"):
        example.with_suffix("").write_text(re.sub(r"(?m)^(\w+)=$", r"\1=filled-in", example.read_text()))
    return {name: build(folder / "kubernetes" / path) for name, path in {"base": "base", "gpu": "overlays/gpu"}.items()}


def build(folder: Path) -> list[dict[str, Any]]:
    process = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stderr
    return objects_of(process.stdout)


def pods_of(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for made in objects:
        if made["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield f"{made['kind']}/{made['metadata']['name']}", made["spec"]["template"]


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


# ---- Kubernetes: schemas


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: str(file.relative_to(KUBERNETES)))
def test_every_file_is_what_kubernetes_takes(file: Path) -> None:
    objects = objects_of(file.read_text(encoding="utf-8"))
    assert objects
    for made in objects:
        kubernetes_validate.validate(made, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_that_kustomize_makes_is_what_kubernetes_takes(built: dict[str, list[dict[str, Any]]], version: str) -> None:
    assert {name: len(objects) for name, objects in built.items()} == {"base": 26, "gpu": 30}
    for objects in built.values():
        for made in objects:
            kubernetes_validate.validate(made, version, strict=True)
            assert made["kind"] == "Namespace" or made["metadata"]["namespace"] == "ballast"


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        (("spec", "template", "spec"), "nodeselector", {}),  # a key that does not exist: Kubernetes would drop it in silence
        (("spec", "template", "spec", "containers", 0, "resources"), "limit", {}),
        (("spec",), "backoffLimit", "three"),  # a value of the wrong type
    ],
)
def test_the_validator_sees_a_mistake(place: tuple[Any, ...], key: str, value: Any) -> None:
    job = objects_of((KUBERNETES / "overlays/gpu/stage-job.yaml").read_text())[0]
    node: Any = job
    for step in place:
        node = node[step]
    node[key] = value
    with pytest.raises(kubernetes_validate.ValidationError, match=re.escape(str(value if key == "backoffLimit" else key))):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


# ---- Kubernetes: laws of our own


def test_every_pod_keeps_to_the_restricted_standard(built: dict[str, list[dict[str, Any]]]) -> None:
    found = dict(pods_of(built["gpu"]))
    assert len(found) == 8
    for name, pod in found.items():
        context = pod["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), name
        assert context["runAsUser"] > 0, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys(), name
        assert not [volume for volume in pod["spec"]["volumes"] if "hostPath" in volume], name
        for container in containers_of(pod):
            confined = container["securityContext"]
            assert (confined["allowPrivilegeEscalation"], confined["capabilities"]) == (False, {"drop": ["ALL"]}), name


def test_only_containers_with_a_checkout_may_write_their_root_file_system(built: dict[str, list[dict[str, Any]]]) -> None:
    writable = {
        f"{name}:{container['name']}"
        for name, pod in pods_of(built["gpu"])
        for container in containers_of(pod)
        if not container["securityContext"].get("readOnlyRootFilesystem")
    }
    assert writable == {"Deployment/worker-cpu:worker", "Job/stage-on-gpu:stage", "Job/stage-on-nodes:stage"}


def test_only_the_worker_that_makes_jobs_has_a_token_and_it_reads_no_secret(built: dict[str, list[dict[str, Any]]]) -> None:
    with_token = {name for name, pod in pods_of(built["gpu"]) if pod["spec"].get("automountServiceAccountToken", True)}
    assert with_token == {"Deployment/worker-kubernetes"}
    rules = [rule for made in built["gpu"] if made["kind"] == "Role" for rule in made["rules"]]
    allowed = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert {("jobs", "create"), ("jobs", "delete"), ("pods", "watch"), ("pods/log", "get")} <= allowed
    assert not {resource for resource, _ in allowed} & {"secrets", "*", "pods/exec"}
    assert not [made for made in built["gpu"] if made["kind"].startswith("ClusterRole")]


def test_every_server_is_probed_and_every_container_says_what_it_needs(built: dict[str, list[dict[str, Any]]]) -> None:
    for name, pod in pods_of(built["gpu"]):
        for container in containers_of(pod):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
        if not name.startswith("Job/"):
            assert {"startupProbe", "livenessProbe"} <= pod["spec"]["containers"][0].keys(), name


def test_passwords_come_from_secrets_and_every_key_asked_for_is_there(built: dict[str, list[dict[str, Any]]]) -> None:
    keys = {made["metadata"]["name"]: made["data"].keys() for made in built["gpu"] if made["kind"] == "Secret"}
    asked = 0
    for name, pod in pods_of(built["gpu"]):
        for variable in [variable for container in containers_of(pod) for variable in container.get("env", [])]:
            if re.search(r"PASSWORD|SECRET_ACCESS_KEY|AUTH_STRING$|ACCESS_KEY_ID|SERVER_SECRET_KEY", variable["name"]):
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["key"] in keys[reference["name"]], f"{name}: {variable['name']}"
                asked += 1
    assert asked > 20


def test_a_stage_on_a_gpu_asks_for_it_may_go_where_it_is_and_keeps_its_states(built: dict[str, list[dict[str, Any]]]) -> None:
    jobs = {name: pod for name, pod in pods_of(built["gpu"]) if name.startswith("Job/")}
    assert len(jobs) == 2
    for pod in jobs.values():
        container = pod["spec"]["containers"][0]
        gpus = {container["resources"][kind]["nvidia.com/gpu"] for kind in ("requests", "limits")}
        assert len(gpus) == 1 and int(gpus.pop()) >= 1
        assert pod["spec"]["tolerations"] and pod["spec"]["nodeSelector"]
        claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"][:2]}
        states = next(mount for mount in container["volumeMounts"] if mount["subPath"] == "post_train")
        assert (states["mountPath"], claims[states["name"]]) == ("/opt/ballast/.work/post_train", "ballast-work")
        assert container["image"] == "ballast-gpu:0.1.0"
    assert [made["spec"]["suspend"] for made in built["gpu"] if made["kind"] == "Job"] == [True, True]


def test_every_policy_speaks_of_pods_that_exist(built: dict[str, list[dict[str, Any]]]) -> None:
    labels = [set(pod["metadata"]["labels"].items()) for _, pod in pods_of(built["gpu"])]
    pairs: list[tuple[str, str]] = []
    for made in [made for made in built["gpu"] if made["kind"] == "NetworkPolicy"]:
        for selector in selectors_of(made["spec"]):
            pairs += selector.get("matchLabels", {}).items()
            pairs += [(rule["key"], value) for rule in selector.get("matchExpressions", []) for value in rule["values"]]
    assert len(pairs) > 10
    assert [pair for pair in pairs if not any(pair in of_pod for of_pod in labels)] == []


def selectors_of(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "podSelector":
                yield value
            else:
                yield from selectors_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from selectors_of(value)


# ---- compose


def test_compose_keeps_to_its_specification_and_the_check_sees_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("healthcheck:", "health_check:"))
    check = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*check, str(COMPOSE)], capture_output=True, check=False).returncode == 0
    answer = subprocess.run([*check, str(wrong)], capture_output=True, text=True, check=False)
    assert (answer.returncode, "health_check" in answer.stdout) == (1, True)


@pytest.mark.parametrize("name", read_services())
def test_every_service_is_confined_and_pinned(name: str) -> None:
    service = read_services()[name]
    assert re.fullmatch(r"\d+:\d+", service["user"]) and not service["user"].startswith("0:")
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert service["read_only"] or name == "worker-cpu", "only the worker has a checkout to write in"
    tag = read_services({"BALLAST_VERSION": ""} | dict.fromkeys(required(), "x"))[name]["image"].partition(":")[2]
    assert re.match(r"\d+\.\d+", tag), f"{name}: an exact version, not {tag or 'latest'}"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), f"{name} would listen beyond this machine"
    if name in ONE_OFF:
        assert service["restart"].startswith("on-failure")
    else:
        assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"]
    for other, rule in service.get("depends_on", {}).items():
        assert rule["condition"] == ("service_completed_successfully" if other in ONE_OFF else "service_healthy")


def required() -> set[str]:
    return {name for name, rules in variables_of(COMPOSE.read_text()).items() if ":?" in rules}


def test_compose_refuses_to_start_without_a_password_and_has_no_default_for_one() -> None:
    for name, rules in variables_of(COMPOSE.read_text()).items():
        is_secret = re.search(r"PASSWORD|SECRET|KEY|AUTH", name) is not None
        assert (rules == {":?"}) is is_secret, f"{name}: {rules}"
    assert len(required()) == 9
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD is missing"):
        read_services(dict.fromkeys(required() - {"POSTGRES_PASSWORD"}, "x"))


def test_the_example_names_every_variable_and_holds_no_secret() -> None:
    lines = [line for line in (INFRA / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    example = dict(line.split("=", 1) for line in lines)
    optional = {"BALLAST_VERSION", "MLFLOW_WORKERS", "MLFLOW_WORKER_USER"}
    assert example.keys() == variables_of(COMPOSE.read_text()).keys() - optional
    assert {name for name in example if example[name]} == {"PREFECT_PORT", "MLFLOW_PORT", "STORE_PORT"}


@pytest.mark.parametrize("place", ["compose", "kubernetes"])
def test_mlflow_and_prefect_start_with_the_flags_of_a_shared_server(place: str) -> None:
    """The flags of a server that others reach: names it answers to, a password, no jobs, no pickle, nothing that reports home."""
    if place == "compose":
        services = read_services(dict.fromkeys(required(), "x"))
        words, environ = services["mlflow"]["command"], services["mlflow"]["environment"]
        prefect = services["prefect"]["environment"]
    else:
        pods = dict(pods_of(objects_of((KUBERNETES / "base/mlflow.yaml").read_text())))
        container = pods["Deployment/mlflow"]["spec"]["containers"][0]
        words, environ = container["args"], {entry["name"]: entry.get("value", "x") for entry in container["env"]}
        pods = dict(pods_of(objects_of((KUBERNETES / "base/prefect.yaml").read_text())))
        container = pods["Deployment/prefect"]["spec"]["containers"][0]
        prefect = {entry["name"]: entry.get("value", "x") for entry in container["env"]}
    assert any(re.match(r"--allowed-hosts=mlflow:5000,(?!.*\*)", word) for word in words)
    assert {"--app-name=basic-auth", "--artifacts-destination=s3://mlflow/"} <= set(words)
    assert "--disable-security-middleware" not in words
    assert (environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"], environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]) == ("false", "false")
    assert environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] and prefect["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert (prefect["PREFECT_SERVER_ANALYTICS_ENABLED"], prefect["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"]) == (
        "false",
        "false",
    )


# ---- what happens to stages when their worker is told to stop


def test_a_worker_that_runs_stages_itself_ends_them_first_and_has_the_time(built: dict[str, list[dict[str, Any]]]) -> None:
    """Prefect's own command would end them within seconds and leave their runs Running; where stages are pods it ends none."""
    longest = FLOW_GRACE_SECONDS + WORKER_GRACE_SECONDS
    service = read_services()["worker-cpu"]
    pods = {name: pod["spec"] for name, pod in pods_of(built["gpu"]) if "Deployment/worker-" in name}
    assert service["command"][:3] == ["python", "-m", "infra.local_stack.worker"]
    assert int(service["stop_grace_period"].removesuffix("s")) > longest
    assert {name: pod["containers"][0]["args"][:3] for name, pod in pods.items()} == {
        "Deployment/worker-cpu": ["python", "-m", "infra.local_stack.worker"],
        "Deployment/worker-kubernetes": ["prefect", "worker", "start"],
    }
    assert pods["Deployment/worker-cpu"]["terminationGracePeriodSeconds"] > longest
    for file in (INFRA / "docker").glob("*.Dockerfile"):
        assert 'CMD ["python", "-m", "infra.local_stack.worker",' in file.read_text(encoding="utf-8")


# ---- where a worker's checkout lies, and where its commits come from


def test_a_workers_checkout_outlives_it_on_one_file_system(built: dict[str, list[dict[str, Any]]]) -> None:
    """The teacher cache is renamed from .work into artifacts, which no file system does across mounts."""
    assert read_services()["worker-cpu"]["volumes"] == ["worker-cpu:/opt/ballast"]
    pod = dict(pods_of(built["gpu"]))["Deployment/worker-cpu"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {path for path in mounts if path.startswith("/opt/ballast")} == {"/opt/ballast", "/opt/ballast/.dvc/cache"}
    claims = {volume["name"]: volume["persistentVolumeClaim"] for volume in pod["volumes"] if "emptyDir" not in volume}
    assert claims[mounts["/opt/ballast"]] == {"claimName": "ballast-checkout"}
    for file in (INFRA / "docker").glob("*.Dockerfile"):
        assert "\nVOLUME" not in file.read_text(encoding="utf-8"), "each would be a mount of its own inside the checkout's"


def test_a_checkout_is_copied_into_its_volume_once_and_whole(built: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    (image / ".git").mkdir(parents=True)
    (volume / "unfinished" / "half").mkdir(parents=True)
    pod = dict(pods_of(built["base"]))["Deployment/worker-cpu"]["spec"]
    words = [word.replace("/opt/ballast", str(image)) for word in pod["initContainers"][0]["args"]]
    words = [re.sub(r"(?<![\w/])/volume", str(volume), word) for word in words]
    for commit in ("first", "second"):
        (image / "commit").write_text(commit)
        subprocess.run(words, check=True)
        assert sorted(file.name for file in (volume / "ballast").iterdir()) == [".git", "commit"]
        assert (volume / "ballast" / "commit").read_text() == "first", "a newer image must not take the results away"
        assert [folder.name for folder in volume.iterdir()] == ["ballast"]


def test_a_worker_is_told_where_commits_come_from(built: dict[str, list[dict[str, Any]]]) -> None:
    assert read_services()["worker-cpu"]["environment"]["BALLAST_GIT_URL"] == "${BALLAST_GIT_URL:-}"
    environ = dict(pods_of(built["gpu"]))["Deployment/worker-cpu"]["spec"]["containers"][0]["env"]
    url = next(entry["valueFrom"]["secretKeyRef"] for entry in environ if entry["name"] == "BALLAST_GIT_URL")
    secret = next(made for made in built["gpu"] if made["kind"] == "Secret" and made["metadata"]["name"] == url["name"])
    assert url["key"] in secret["data"]


def test_a_training_on_several_nodes_has_all_that_it_reads(built: dict[str, list[dict[str, Any]]]) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["post_train"]
    read = {"/".join(path.split("/")[:2]) for path in stage["deps"] if path.startswith("artifacts/")}
    pod = dict(pods_of(built["gpu"]))["Job/stage-on-nodes"]["spec"]
    pulled = re.search(r"dvc pull (.+)", pod["containers"][0]["args"][-1])
    assert pulled and set(pulled[1].split()) == read


# ---- no secret in any file


GIVEN = re.compile(
    r"(?i)(password|secret_key|access_key|auth_string|token)\"?\s*[:=]\s*[\"']?(?![\"'$\s{]|is |the |of )[\w+/.-]{6,}"
)
"""A value given to a name that says password."""
TOKEN = re.compile(
    r"://[^/\s:@]+:[^/\s@$]+@|\b(hf_|ghp_|github_pat_|AKIA|glpat-|xox[bp]-)[A-Za-z0-9]{8,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)
"""An address with a password in it, or a token in one of the usual forms."""


def holds_secret(line: str) -> bool:
    is_reference = re.search(r"password :'\w+'|SECRET_KEY, value: PREFECT_AUTH_STRING", line)  # psql's variable, a Secret's key
    return bool(TOKEN.search(line) or (GIVEN.search(line) and not is_reference))


def test_no_file_of_infra_holds_a_secret() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "infra"], cwd=ROOT, capture_output=True, check=True)
    files = [file for line in listed.stdout.decode().splitlines() if (file := ROOT / line).exists()]
    assert len(files) > 20
    lines = [(file.name, line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if holds_secret(line[1])] == []


@pytest.mark.parametrize(
    "line",
    [
        "POSTGRES_PASSWORD: hunter2hunter2",
        "PGPASSWORD=of-mlflow",
        '"AWS_SECRET_ACCESS_KEY": "abcdef123"',
        "- s3://user:word@store/",
    ],
)
def test_the_scan_sees_a_secret(line: str) -> None:
    assert holds_secret(line)


def test_files_with_secrets_are_neither_committed_nor_sent_to_the_image_builder() -> None:
    names = ["infra/.env", "infra/kubernetes/base/secrets.env", "infra/kubernetes/base/stage-secrets.env"]
    for name in names:
        assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT, check=False).returncode == 0, name
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert set(rules[1:]) == {"!.git", "!requirements.lock", "!requirements-infra.lock", "!infra/install_lock.sh"}
