"""What ``ray up cluster.yaml`` launches through Ray's own AWS provider, with moto in the place of AWS."""

import copy
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
CLUSTER_FILE = ROOT / "cluster.yaml"
GUIDE = (ROOT / "docs" / "clusters.md").read_text()
ACCOUNT = "123456789012"  # moto's
TRUST = re.search(r"^trust='(.+)'$", GUIDE, re.MULTILINE)[1]
ALL_ADDRESSES = {"0.0.0.0/0", "::/0"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Ray puts the key pair."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def aws(home: Path) -> Iterator[Any]:
    """EC2's client in a mocked AWS."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import config, utils

    caches = [utils.resource_cache, utils.client_cache, config._get_subnets_or_die]
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        # neither a client nor a session that was made outside, nor one of these outside
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        for cache in caches:
            cache.cache_clear()
        yield boto3.client("ec2", region_name=yaml.safe_load(CLUSTER_FILE.read_text())["provider"]["region"])
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="module")
def policies() -> dict[str, str]:
    """The policies of docs/clusters.md by their files' names."""
    return dict(re.findall(r"`(\w+\.json)`:\n\n```json\n(.+?)```", GUIDE, re.DOTALL))


@pytest.fixture(scope="module")
def filled(aws: Any, policies: dict[str, str]) -> dict[str, Any]:
    """The launcher's file after docs/clusters.md was followed: roles, private subnets, and a group open to itself alone."""
    import boto3

    iam = boto3.client("iam")
    for name in ("leapray-head", "leapray-worker"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)
        iam.put_role_policy(RoleName=name, PolicyName="bucket", PolicyDocument=policies["bucket.json"])
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    iam.put_role_policy(
        RoleName="leapray-head", PolicyName="launch", PolicyDocument=policies["head.json"].replace("FILL-IN-ACCOUNT", ACCOUNT)
    )
    vpc = aws.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    text = CLUSTER_FILE.read_text()
    region = yaml.safe_load(text)["provider"]["region"]
    for number, zone in enumerate("AB"):
        subnet = aws.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{region}{zone.lower()}")["Subnet"]
        assert not subnet["MapPublicIpOnLaunch"]
        text = text.replace(f"subnet-FILL-IN-PRIVATE-{zone}", subnet["SubnetId"])
    group = aws.create_security_group(GroupName="leapray", Description="nodes", VpcId=vpc)["GroupId"]
    aws.authorize_security_group_ingress(GroupId=group, IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}])
    return yaml.safe_load(text.replace("sg-FILL-IN", group))


def bootstrapped(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``ray up`` makes of a file before it launches anything."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(dict(config)))
    provider = _NODE_PROVIDERS[prepared["provider"]["type"]](prepared["provider"])
    complete = provider.fillout_available_node_types_resources(prepared)
    validate_config(complete)
    return provider.bootstrap_config(complete)


@pytest.fixture(scope="module")
def ready(filled: dict[str, Any]) -> dict[str, Any]:
    return bootstrapped(filled)


@pytest.fixture
def provider(ready: dict[str, Any], aws: Any) -> Iterator[Any]:
    """The node provider that ``ray up`` would launch with; its instances end with the test."""
    from ray.autoscaler._private.providers import _get_node_provider

    yield _get_node_provider(ready["provider"], ready["cluster_name"], use_cache=False)
    if running := [instance["InstanceId"] for instance in instances(aws)]:
        aws.terminate_instances(InstanceIds=running)


def instances(aws: Any) -> list[dict[str, Any]]:
    alive = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    return [instance for held in aws.describe_instances(Filters=alive)["Reservations"] for instance in held["Instances"]]


def test_what_ray_up_would_launch_is_closed_to_the_world(ready: dict[str, Any], provider: Any, aws: Any) -> None:
    assert ready["provider"]["use_internal_ips"]
    for name, node in ready["available_node_types"].items():
        provider.create_node(node["node_config"], {"ray-node-name": name, "ray-user-node-type": name}, 1)
    running = instances(aws)
    assert len(running) == len(ready["available_node_types"])
    groups = {group["GroupId"] for instance in running for group in instance["SecurityGroups"]}
    described = aws.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
    rules = [rule for group in described for rule in group["IpPermissions"]]
    assert rules
    for rule in rules:
        assert rule["IpRanges"] == rule["Ipv6Ranges"] == rule["PrefixListIds"] == []
        assert {pair["GroupId"] for pair in rule["UserIdGroupPairs"]} <= groups
    assert [instance for instance in running if instance.get("PublicIpAddress")] == []
    assert all(node["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for node in ready["available_node_types"].values())


def test_the_group_that_ray_would_make_by_itself_is_open(filled: dict[str, Any], aws: Any) -> None:
    # the reason why the file asks for one: should Ray ever make a closed group, that blank can go
    without = copy.deepcopy(filled)
    for node in without["available_node_types"].values():
        del node["node_config"]["SecurityGroupIds"]
    made = bootstrapped(without)["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    rules = aws.describe_security_groups(GroupIds=made)["SecurityGroups"][0]["IpPermissions"]
    assert {address["CidrIp"] for rule in rules for address in rule["IpRanges"]} & ALL_ADDRESSES


def test_nodes_have_the_resources_that_their_machines_have(filled: dict[str, Any], aws: Any) -> None:
    types = [node["node_config"]["InstanceType"] for node in filled["available_node_types"].values()]
    machines = {machine["InstanceType"]: machine for machine in aws.describe_instance_types(InstanceTypes=types)["InstanceTypes"]}
    for node in filled["available_node_types"].values():
        machine, resources = machines[node["node_config"]["InstanceType"]], node["resources"]
        assert resources["CPU"] <= machine["VCpuInfo"]["DefaultVCpus"]
        gpus = machine.get("GpuInfo", {"Gpus": []})["Gpus"]
        assert resources.get("GPU", 0) == sum(gpu["Count"] for gpu in gpus)
        assert {key.partition(":")[2] for key in resources if ":" in key} == {gpu["Name"] for gpu in gpus}
    data = filled["available_node_types"]["data"]
    shared, store = (int(re.search(r"=(\d+)", option)[1]) for option in data["docker"]["worker_run_options"])
    memory = machines[data["node_config"]["InstanceType"]]["MemoryInfo"]["SizeInMiB"] << 20
    assert store < shared << 30 < memory / 2


def test_bucket_access_is_by_role_and_ssh_passes_through_the_session_manager(ready: dict[str, Any], home: Path) -> None:
    profiles = {name: node["node_config"]["IamInstanceProfile"] for name, node in ready["available_node_types"].items()}
    assert profiles == {"head": {"Name": "leapray-head"}, "gpu": {"Name": "leapray-worker"}, "data": {"Name": "leapray-worker"}}
    assert "aws_credentials" not in ready["provider"]
    key = Path(ready["auth"]["ssh_private_key"])
    assert key.parent == home / ".ssh"
    assert key.stat().st_mode & 0o077 == 0
    proxy = shlex.split(ready["auth"]["ssh_proxy_command"])
    assert proxy[:3] == ["aws", "ssm", "start-session"]
    assert proxy[proxy.index("--region") + 1] == ready["provider"]["region"]


def test_workers_are_spot_instances_where_there_are_any(ready: dict[str, Any], provider: Any, aws: Any) -> None:
    for name, node in ready["available_node_types"].items():
        made = provider.create_node(node["node_config"], {"ray-node-name": name}, 1)
        kinds = {instance.get("InstanceLifecycle") for instance in instances(aws) if instance["InstanceId"] in made}
        assert kinds == ({None} if name == "head" else {"spot"})


def test_the_heads_role_may_do_what_ray_does_there_and_the_workers_may_not(ready: dict[str, Any], aws: Any) -> None:
    import boto3
    from moto.core import set_initial_no_auth_action_count
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    settings = ready["available_node_types"]["data"]["node_config"]
    sts = boto3.client("sts")

    def provider_of(role: str) -> AWSNodeProvider:
        keys = sts.assume_role(RoleArn=f"arn:aws:iam::{ACCOUNT}:role/{role}", RoleSessionName="node")["Credentials"]
        named = {"aws_access_key_id": "AccessKeyId", "aws_secret_access_key": "SecretAccessKey", "aws_session_token": "SessionToken"}
        credentials = {name: keys[key] for name, key in named.items()}
        return AWSNodeProvider(ready["provider"] | {"aws_credentials": credentials}, ready["cluster_name"])

    head, worker = provider_of("leapray-head"), provider_of("leapray-worker")

    @set_initial_no_auth_action_count(0)
    def with_rights_looked_at() -> None:
        made = list(head.create_node(settings, {"ray-node-name": "data", "ray-node-type": "worker"}, 1))
        assert head.non_terminated_nodes({"ray-node-type": "worker"}) == made
        head.set_node_tags(made[0], {"ray-node-status": "up-to-date"})
        head.terminate_nodes(made)
        with pytest.raises(NodeLaunchException, match=r"UnauthorizedOperation|AccessDenied"):
            worker.create_node(settings, {"ray-node-name": "data"}, 1)

    with_rights_looked_at()
