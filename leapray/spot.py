"""The node provider that cluster.yaml names: spot nodes of AWS, and on-demand ones where there are no spot nodes to be had."""

from __future__ import annotations

import json
import re
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider, make_ec2_resource
from ray.autoscaler._private.cli_logger import cli_logger
from ray.autoscaler._private.constants import BOTO_MAX_RETRIES
from ray.autoscaler.node_launch_exception import NodeLaunchException

NO_SPOT_CAPACITY = frozenset({"InsufficientInstanceCapacity", "InsufficientCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"})
"""EC2's codes for a spot request that could be had on demand; any other refusal holds for both."""
_BLANK = re.compile(r"[\w-]*FILL-IN[\w-]*")


class SpotOrOnDemand(AWSNodeProvider):
    """Ray's own provider for AWS, except that nodes are launched on demand where AWS has no such spot nodes in any of their subnets.

    A second, on-demand node type would never get its turn: neither of the autoscalers of Ray 2.60 lowers a type that AWS refuses at
    once, they ask for the same again. See docs/clusters.md.
    """

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Fill in what ``ray up`` leaves to AWS's defaults; end it, with a sentence, at a blank or a subnet that gives public addresses."""
        if blanks := sorted(set(_BLANK.findall(json.dumps(cluster_config)))):
            cli_logger.abort(f"{', '.join(blanks)} still to be filled in; docs/clusters.md tells how")
        config = AWSNodeProvider.bootstrap_config(cluster_config)
        ec2 = make_ec2_resource(config["provider"]["region"], BOTO_MAX_RETRIES, config["provider"].get("aws_credentials"))
        ids = sorted({subnet for node in config["available_node_types"].values() for subnet in node["node_config"]["SubnetIds"]})
        if public := sorted(subnet.id for subnet in ec2.subnets.filter(SubnetIds=ids) if subnet.map_public_ip_on_launch):
            cli_logger.abort(f"{', '.join(public)}: nodes there would get public addresses; give private subnets")
        return config

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch up to ``count`` instances; they are returned by id. Raises NodeLaunchException where EC2 launches none."""
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as refusal:
            if "InstanceMarketOptions" not in node_config or refusal.category not in NO_SPOT_CAPACITY:
                raise
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return super().create_node(on_demand, tags, count)
