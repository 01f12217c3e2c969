"""Passes AWS's notice, two minutes before it takes a spot instance, on to Ray, whose trainings then write a checkpoint at once (Ray).

``python -m leapray.cluster.notice --address HEAD:6379`` runs on every spot node, as cluster.yaml has it. Ray itself does not ask AWS.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from leapray.cluster.ray_compat import drain_command

METADATA = "http://169.254.169.254"
"""Where an instance asks AWS about itself (EC2 instance metadata, version 2)."""
_ACTION = "/latest/meta-data/spot/instance-action"
_ASK_SECONDS, _PATIENCE_SECONDS, _TOKEN_SECONDS = 5.0, 2.0, 21600
_LEAST_SECONDS = 10


def noticed(metadata: str = METADATA) -> datetime | None:
    """When AWS will take this instance, in UTC; None when it has not said so. Raises OSError where there is no AWS to ask."""
    token = _ask(metadata + "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}, "PUT").decode()
    try:
        action = _ask(metadata + _ACTION, {"X-aws-ec2-metadata-token": token})
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return datetime.fromisoformat(json.loads(action)["time"])


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=_PATIENCE_SECONDS) as answer:
        return bytes(answer.read())


def drain(address: str, seconds: int) -> None:
    """Tell the cluster that this node will be gone in so many seconds. Raises CalledProcessError where it does not listen."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    node = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    subprocess.run(drain_command(address, node, "AWS takes this spot instance", seconds), check=True)


def watch(tell: Callable[[int], None], metadata: str = METADATA, wait: Callable[[float], Any] = time.sleep) -> None:
    """Ask AWS until it gives notice, and tell how many seconds are left, once it is heard. A question that fails is asked again."""
    while True:
        try:
            taken = noticed(metadata)
        except (OSError, HTTPException, ValueError, KeyError):
            taken = None
        if taken is not None:
            try:
                tell(max(int((taken - datetime.now(UTC)).total_seconds()), _LEAST_SECONDS))
                return
            except Exception:
                logging.exception("the cluster was not told that this node goes")
        wait(_ASK_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="HOST:PORT of the cluster's head")
    address = parser.parse_args().address
    watch(lambda seconds: drain(address, seconds))


if __name__ == "__main__":
    main()
