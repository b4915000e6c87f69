"""Laws of the work pools that start containers: what Prefect's own worker classes make of a template is what an engine takes."""

import asyncio
import copy
import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from tests.infra.compose_services import ROOT

POOLS = ROOT / "infra" / "prefect" / "work_pools"
CONTAINER_POOLS = ["gpu-docker", "gpu-kubernetes"]
STAGE_GRACE_SECONDS = 30


def read_pool(name: str) -> dict[str, Any]:
    pool: dict[str, Any] = json.loads((POOLS / f"{name}.json").read_text(encoding="utf-8"))
    return pool


def worker_class(name: str) -> Any:
    if name == "gpu-docker":
        from prefect_docker.worker import DockerWorker

        return DockerWorker
    from prefect_kubernetes.worker import KubernetesWorker

    return KubernetesWorker


class Server:
    """What the template asks the server for: blocks and variables, each answered with its own name."""

    async def read_block_document_by_name(self, name: str, block_type_slug: str, **_: Any) -> Any:
        from prefect.client.schemas.objects import BlockDocument

        return BlockDocument.model_construct(id=uuid.uuid4(), name=name, data={"value": f"block {name}"})

    async def read_variable_by_name(self, name: str) -> Any:
        from prefect.client.schemas.objects import Variable

        return Variable.model_construct(name=name, value=f"variable {name}")


def configure(name: str, **job_variables: Any) -> Any:
    """The configuration of one flow run, as the worker makes it just before it starts the container."""
    from prefect.client.schemas.objects import Flow, FlowRun, WorkPool

    pool = read_pool(name)
    configuration = asyncio.run(
        worker_class(name).job_configuration.from_template_and_values(
            copy.deepcopy(pool["base_job_template"]), job_variables, client=Server()
        )
    )
    flow = Flow.model_construct(id=uuid.uuid4(), name="stage", labels={})
    run = FlowRun.model_construct(id=uuid.uuid4(), flow_id=flow.id, name="post_train@sft-0", labels={}, state=None)
    work_pool = WorkPool.model_construct(id=uuid.uuid4(), name=name, type=pool["type"])
    configuration.prepare_for_flow_run(run, None, flow, work_pool, "worker")
    return configuration


def manifest(**job_variables: Any) -> dict[str, Any]:
    """The Job as the cluster gets it. Prefect insists on two keys of a Job in the pod, too, which the cluster drops there."""
    job: dict[str, Any] = configure("gpu-kubernetes", **job_variables).job_manifest
    for misplaced in ("parallelism", "completions"):
        job["spec"]["template"]["spec"].pop(misplaced)
    return job


class Engine:
    """As much of a Docker engine as the worker looks at before it creates a container."""

    def version(self) -> dict[str, str]:
        return {"Version": "28.0.0"}


def container_settings(**job_variables: Any) -> dict[str, Any]:
    configuration = configure("gpu-docker", **job_variables)
    worker = worker_class("gpu-docker").__new__(worker_class("gpu-docker"))
    settings: dict[str, Any] = worker._build_container_settings(Engine(), configuration)
    return settings


@pytest.mark.parametrize("name", CONTAINER_POOLS)
def test_every_variable_has_an_effect_and_has_a_default(name: str) -> None:
    pool = read_pool(name)
    template = pool["base_job_template"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    variables = template["variables"]["properties"]
    assert used == variables.keys()
    assert (pool["name"], pool["type"]) == (name, worker_class(name).type)
    assert "required" not in template["variables"]


@pytest.mark.parametrize("name", CONTAINER_POOLS)
def test_a_pool_has_every_variable_of_the_integration(name: str) -> None:
    """A new release of it may bring more. `container_create_kwargs` is ours: the GPU stands in it."""
    theirs = worker_class(name).get_default_base_job_template()["variables"]["properties"].keys()
    ours = read_pool(name)["base_job_template"]["variables"]["properties"].keys()
    assert theirs - ours <= {"container_create_kwargs"}


@pytest.mark.parametrize("name", CONTAINER_POOLS)
def test_a_job_says_what_image_with_the_repository_and_where_data_come_from(name: str) -> None:
    from prefect.utilities.dockerutils import parse_image_tag

    variables = read_pool(name)["base_job_template"]["variables"]["properties"]
    assert parse_image_tag(variables["image"]["default"]) == ("ballast-gpu", "0.1.0")
    environ = variables["env"]["default"]
    assert environ["BALLAST_DVC_REMOTE"] == "s3://dvc"
    assert environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert {"AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "DVC_NO_ANALYTICS", "DO_NOT_TRACK"} <= environ.keys()
    for variable, value in environ.items():
        if re.search("PASSWORD|SECRET|KEY", variable):
            assert re.fullmatch(r"\{\{ prefect\.blocks\.secret\.[a-z-]+ \}\}", value), (
                f"{variable} would be there for all to read"
            )


# ---- Kubernetes


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_job_of_a_flow_run_is_what_kubernetes_takes(version: str) -> None:
    kubernetes_validate.validate(manifest(), version, strict=True)
    changed = manifest(gpu=4, node_selector={"nvidia.com/gpu.product": "H200"}, tolerations=[], cpu_limit="8", backoff_limit=2)
    kubernetes_validate.validate(changed, version, strict=True)


def test_a_mistake_in_the_template_is_seen() -> None:
    job = manifest(tolerations=[{"key": "nvidia.com/gpu", "operater": "Exists"}])
    with pytest.raises(kubernetes_validate.ValidationError, match="operater"):
        kubernetes_validate.validate(job, "1.31", strict=True)


def at(*steps: str | int) -> Callable[[dict[str, Any]], Any]:
    def read(job: dict[str, Any]) -> Any:
        node: Any = job["spec"]["template"]["spec"]
        for step in steps:
            node = node[step]
        return node

    return read


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("gpu", 4, at("containers", 0, "resources", "limits", "nvidia.com/gpu")),
        ("gpu", 4, at("containers", 0, "resources", "requests", "nvidia.com/gpu")),
        ("node_selector", {"nvidia.com/gpu.product": "H200"}, at("nodeSelector")),
        ("tolerations", [], at("tolerations")),
        ("work_claim", "elsewhere", at("volumes", 0, "persistentVolumeClaim", "claimName")),
        ("cache_claim", "elsewhere", at("volumes", 1, "persistentVolumeClaim", "claimName")),
        ("shm_size", "64Gi", at("volumes", 2, "emptyDir", "sizeLimit")),
        ("secret_name", "others", at("containers", 0, "env", -1, "valueFrom", "secretKeyRef", "name")),
        ("grace_seconds", 300, at("terminationGracePeriodSeconds")),
        ("image", "registry.example/ballast-gpu:1", at("containers", 0, "image")),
        ("service_account_name", "another", at("serviceAccountName")),
    ],
)
def test_a_variable_reaches_the_job(variable: str, value: Any, place: Callable[[dict[str, Any]], Any]) -> None:
    assert place(manifest()) != value
    assert place(manifest(**{variable: value})) == value


def test_a_job_has_a_gpu_its_secrets_by_reference_its_states_on_a_volume_and_time_to_save_them() -> None:
    job = manifest()
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["terminationGracePeriodSeconds"] > STAGE_GRACE_SECONDS
    assert (job["metadata"]["namespace"], job["spec"]["backoffLimit"]) == ("ballast", 0)
    by_reference = {entry["name"] for entry in container["env"] if "valueFrom" in entry}
    names = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    assert by_reference == names | {"BALLAST_GIT_URL"}
    assert not {entry["name"] for entry in container["env"] if "value" in entry} & names
    states = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "work"}
    assert states == {f"/opt/ballast/.work/{name}" for name in ("post_train", "score_tokens")}
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "stage"  # for the network policies
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert "python -m prefect.engine" in " ".join(container["args"]) or "prefect flow-run execute" in " ".join(container["args"])


# ---- Docker


def test_a_container_gets_the_gpu_by_id_and_the_docker_library_takes_every_argument() -> None:
    from docker.models.containers import _create_container_args

    settings = container_settings(gpu_ids=["1", "2"], shm_size="32g", stop_signal="SIGINT")
    arguments = _create_container_args({**settings, "version": "1.47"})  # refuses what it does not know
    host = arguments["host_config"]
    assert host["DeviceRequests"] == [
        {"Driver": "nvidia", "Count": 0, "DeviceIDs": ["1", "2"], "Capabilities": [["gpu"]], "Options": {}}
    ]
    assert (host["ShmSize"], arguments["stop_signal"], arguments["user"]) == (32 << 30, "SIGINT", "10001:10001")
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges:true"])
    assert "ballast-post-train:/opt/ballast/.work/post_train" in host["Binds"]
    assert arguments["image"] == "ballast-gpu:0.1.0"


def test_a_containers_secrets_come_from_blocks() -> None:
    environ = container_settings()["environment"]
    assert environ["AWS_SECRET_ACCESS_KEY"] == "block ballast-store-secret-key"
    assert environ["MLFLOW_TRACKING_PASSWORD"] == "block ballast-mlflow-password"
    assert environ["MLFLOW_TRACKING_URI"] == "variable ballast_mlflow_url"
    assert environ["BALLAST_GIT_URL"] == "variable ballast_git_url"  # a stage's commit comes from there


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_image_has_the_folders_that_volumes_are_mounted_on(name: str) -> None:
    """A volume takes its owner from the image's folder; where there is none the engine makes root's, and a stage cannot write."""
    text = (ROOT / "infra" / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    made = re.search(r"mkdir -p (.+)", text)
    mounted = {volume.partition(":")[2] for volume in container_settings()["volumes"]}
    assert made and set(made[1].split()) == mounted


def test_one_container_at_a_time_has_the_gpu() -> None:
    assert read_pool("gpu-docker")["concurrency_limit"] == 1
