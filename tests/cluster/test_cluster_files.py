"""cluster.yaml, jobs/rayjob.yaml and jobs/Dockerfile: right before Ray's own validation and scheduler, alike, closed, without secrets."""

import copy
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from leapray import __version__
from leapray.cli import app
from leapray.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent.parent
CLUSTER_FILE, JOB_FILE, IMAGE_FILE = ROOT / "cluster.yaml", ROOT / "jobs" / "rayjob.yaml", ROOT / "jobs" / "Dockerfile"
CHECKOUT = "/home/ray/leapray/"
BLANK = re.compile(r"[\w./:-]*FILL-IN[\w-]*")
GUIDE = ROOT / "docs" / "clusters.md"


@pytest.fixture
def launcher() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER_FILE.read_text())


@pytest.fixture
def manifests() -> dict[str, Any]:
    """What the manifest's file makes, by kind."""
    return {content["kind"]: content for content in yaml.safe_load_all(JOB_FILE.read_text())}


@pytest.fixture
def job(manifests: dict[str, Any]) -> dict[str, Any]:
    return manifests["RayJob"]["spec"]


@pytest.fixture
def training(job: dict[str, Any]) -> Recipe:
    """What the manifest's entrypoint trains."""
    recipe, *overrides = shlex.split(job["entrypoint"])[3:]
    assert overrides[::2] == ["--set"] * (len(overrides) // 2)
    return load_recipe(str(ROOT / recipe.removeprefix(CHECKOUT)), overrides[1::2])


def autoscaling(manifests: Mapping[str, Any]) -> dict[str, Any]:
    """The autoscaler's configuration, validated, as Ray derives it from the cluster that KubeRay makes of a job."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    job = manifests["RayJob"]
    return _derive_autoscaling_config_from_ray_cr({"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]})


def launched(config: Mapping[str, Any], demands: list[dict[str, float]]) -> dict[str, int]:
    """The nodes of each type that Ray's autoscaler has in the end, head aside, where an empty cluster is asked for these resources."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    settings = AutoscalingConfig(copy.deepcopy(dict(config)), skip_content_hash=True)
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand) for demand in demands])
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_nodes(),
            resource_requests=requests,
            disable_launch_config_check=True,
        )
    )
    assert reply.infeasible_resource_requests == []
    return {request.instance_type: request.count for request in reply.to_launch}


def test_ray_finds_nothing_wrong_with_the_launchers_file(launcher: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(launcher))
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    workers = {name: node for name, node in prepared["available_node_types"].items() if name != prepared["head_node_type"]}
    assert sum(node["max_workers"] for node in workers.values()) == prepared["max_workers"]
    assert all(node["min_workers"] == 0 for node in workers.values())


def test_a_misspelt_key_would_be_found(launcher: dict[str, Any], manifests: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher["available_node_types"]["gpu"]["max_worker"] = 3
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(launcher))
    del manifests["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    with pytest.raises(KeyError, match="maxReplicas"):
        autoscaling(manifests)


@pytest.mark.parametrize("kind", ["launcher", "job"])
def test_trainers_go_to_gpu_nodes_data_tasks_to_the_others_and_nothing_to_the_head(
    kind: str, launcher: dict[str, Any], manifests: dict[str, Any], training: Recipe
) -> None:
    config = launcher if kind == "launcher" else autoscaling(manifests)
    nodes = {name: node["resources"] for name, node in config["available_node_types"].items()}
    head = nodes.pop(config["head_node_type"])
    assert head["CPU"] == 0
    assert "GPU" not in head
    resources = training.resources
    gpus = nodes["gpu"]["GPU"]
    # a node full of trainers has no CPU for a task that scales data
    assert nodes["gpu"]["CPU"] == gpus * resources.cpus_per_worker

    trainer = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    wanted = launched(config, [trainer] * resources.workers)
    assert wanted["gpu"] == resources.workers / gpus
    per_node = int(nodes["data"]["CPU"])
    tasks = [{"CPU": 1}] * (2 * per_node)
    assert launched(config, tasks).get("gpu", 0) == config["available_node_types"]["gpu"]["min_workers"]
    both = launched(config, [trainer] * resources.workers + tasks)
    assert both == {"gpu": resources.workers / gpus, "data": 2}


@pytest.mark.parametrize("kind", ["launcher", "job"])
def test_data_nodes_have_the_label_that_a_recipe_may_ask_for(
    kind: str, launcher: dict[str, Any], manifests: dict[str, Any], training: Recipe
) -> None:
    types = (launcher if kind == "launcher" else autoscaling(manifests))["available_node_types"]
    assert types["data"]["labels"] == {"role": "data"}
    assert not types["gpu"].get("labels")
    assert training.resources.data_nodes == types["data"]["labels"]


def test_the_jobs_minimum_of_nodes_holds_its_training(manifests: dict[str, Any], job: dict[str, Any], training: Recipe) -> None:
    # leapray counts the nodes that there are when it starts, and refuses a training that they cannot hold
    from leapray.cluster.capacity import Capacity, plan_trainings

    types = autoscaling(manifests)["available_node_types"].values()
    nodes = [(node["resources"].get("CPU", 0), node["resources"].get("GPU", 0)) for node in types for _ in range(node["min_workers"])]
    cpus = sum(node[0] for node in nodes)
    assert plan_trainings(Capacity("the cluster", nodes, cpus), training.resources).at_once == 1
    assert job["entrypointNumCpus"] + training.resources.workers * training.resources.cpus_per_worker < cpus


def test_all_nodes_run_one_ray_one_torch_and_one_leapray(launcher: dict[str, Any], job: dict[str, Any]) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    policy = next(Requirement(line) for line in re.findall(r'"(ray\[.+?)",?\n', project))
    image = launcher["docker"]["image"]
    ray_version, python, flavour = image.removeprefix("rayproject/ray:").split("-")
    assert ray_version in policy.specifier
    assert (
        Version(python.removeprefix("py3").join(["3.", ""])) in Requirement("python" + re.search(r'python = "(.+)"', project)[1]).specifier
    )
    assert flavour == "gpu"

    dockerfile = IMAGE_FILE.read_text()
    assert re.findall(r"^FROM (.+)$", dockerfile, re.MULTILINE) == [image]
    cluster = job["rayClusterSpec"]
    assert cluster["rayVersion"] == ray_version
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for pod in pods for container in pod["template"]["spec"]["containers"]}
    assert [image.partition("/")[2] for image in images] == [f"leapray:{__version__}-ray{ray_version}"]
    assert f"leapray:{__version__}-ray{ray_version}" in dockerfile

    torch = set(re.findall(r"torch==[\d.]+", (ROOT / "README.md").read_text()))
    assert set(re.findall(r"torch==[\d.]+", dockerfile)) == torch
    assert set(re.findall(r"torch==[\d.]+", " ".join(launcher["setup_commands"]))) == torch
    assert launcher["head_setup_commands"] == launcher["worker_setup_commands"] == []
    assert not any(
        "worker_setup_commands" in node or "image" in str(node.get("docker")) for node in launcher["available_node_types"].values()
    )


def test_the_image_has_what_the_build_and_the_entrypoint_read(job: dict[str, Any]) -> None:
    copied = {name for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", IMAGE_FILE.read_text(), re.MULTILINE) for name in line.split()}
    assert copied >= {"pyproject.toml", "README.md", "LICENSE", "leapray", "jobs"}
    assert all((ROOT / name).exists() for name in copied)
    assert f"WORKDIR {CHECKOUT.rstrip('/')}\n" in IMAGE_FILE.read_text()
    python, script, verb, recipe = shlex.split(job["entrypoint"])[:4]
    assert python == "python"
    assert verb in {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for path in (script, recipe):
        assert path.startswith(CHECKOUT)
        assert (ROOT / path.removeprefix(CHECKOUT)).is_file()


def test_the_job_reads_and_writes_in_the_bucket_alone(training: Recipe) -> None:
    places = [training.data.prepared, training.training.run, *(source.path for source in training.data.sources.values())]
    assert len(places) == 2 + len(training.data.sources)
    assert [place for place in places if not place.startswith("s3://FILL-IN-BUCKET/")] == []


def test_blanks_are_few_and_each_is_explained() -> None:
    found = {
        blank for path in (CLUSTER_FILE, JOB_FILE) for line in path.read_text().splitlines() for blank in BLANK.findall(line.split("# ")[0])
    }
    names = {re.search(r"(?:\w+-)?FILL-IN[A-Z-]*", blank)[0] for blank in found}
    assert names == {
        "subnet-FILL-IN-PRIVATE-A",
        "subnet-FILL-IN-PRIVATE-B",
        "sg-FILL-IN",
        "FILL-IN-ACCOUNT",
        "FILL-IN-BUCKET",
        "FILL-IN-REGISTRY",
    }
    guide = GUIDE.read_text()
    assert [name for name in names if name not in guide] == []


SECRET = re.compile(
    r"AKIA|ASIA|BEGIN [A-Z ]*PRIVATE|aws_secret|aws_access|AWS_SECRET|AWS_ACCESS|RAY_AUTH_TOKEN=|[0-9a-f]{32}", re.IGNORECASE
)


@pytest.mark.parametrize("path", [CLUSTER_FILE, JOB_FILE, IMAGE_FILE], ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Path) -> None:
    assert SECRET.search("-e RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef")
    assert SECRET.findall(path.read_text()) == []


def test_every_node_wants_the_token_and_the_dashboard_is_on_loopback(launcher: dict[str, Any], job: dict[str, Any]) -> None:
    options = launcher["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    token = next(option.partition("=")[2] for option in options if option.startswith("-e RAY_AUTH_TOKEN_PATH="))
    mounts = [target for target in launcher["file_mounts"] if token.startswith(target + "/")]
    assert len(mounts) == 1
    assert launcher["file_mounts"][mounts[0]].startswith("~/")
    starts = [command for command in launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("ulimit -n 65536; ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in shlex.split(starts[0])

    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert not any(pod.get("hostNetwork") or "hostPort" in json.dumps(pod) for pod in pods)


def test_the_manifest_publishes_nothing_and_reaches_the_bucket_by_its_role(manifests: dict[str, Any], job: dict[str, Any]) -> None:
    assert manifests.keys() == {"ServiceAccount", "RayJob"}
    assert "enableIngress" not in job["rayClusterSpec"]["headGroupSpec"]
    account = manifests["ServiceAccount"]["metadata"]
    assert account["namespace"] == manifests["RayJob"]["metadata"]["namespace"]
    assert re.fullmatch(r"arn:aws:iam::FILL-IN-ACCOUNT:role/[\w-]+", account["annotations"]["eks.amazonaws.com/role-arn"])
    cluster = job["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {group["template"]["spec"]["serviceAccountName"] for group in groups} == {account["name"]}
    assert cluster["enableInTreeAutoscaling"]
    assert job["shutdownAfterJobFinishes"]
    assert job["ttlSecondsAfterFinished"] > 0
