"""Every use of a private or fragile interface of Ray: internal modules, switches of the environment, names of files, texts of errors.

A new version of Ray may change any of them, so tests/cluster/test_ray_compat.py has a test for each. Importing this module imports no Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

LOCAL_ENVIRONMENT = {
    # ray.train.report waits until the controller polls: every 2 s by default
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # an elastic training may wait for a place on a node that has just gone: 60 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    # the first start on a cold disk reads libraries for longer than Ray's own limit
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # the C++ part of a driver logs to the terminal
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Switches of a process that starts or joins Ray."""
KEEP_DIRECTORY = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}
"""Switch that leaves workers in the directory of the command, from which a user's own network and relative paths are found."""
TUNE_ENVIRONMENT = KEEP_DIRECTORY | {
    # a training that an earlier start left without its model has nothing more to report
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ctrl-C ends a command here as everywhere
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # a stopped training is gone at once, and its process with it
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
}
"""Switches of a process that runs Ray Tune."""
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that only the process of a submitted job has."""
SOCKET = "/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes below its folder."""
START_LOGS = ("gcs_server.err", "raylet.err", "gcs_server.out", "raylet.out")
"""Logs of a head that did not start, the most telling first, below ``session_latest/logs``."""
_STORE_SHARE, _LEAST_STORE_CAP, _LARGEST_STORE, _SHARED_SLACK = 0.3, 10 * 10**9, 200 * 10**9, 0.95


def folder_option(path: str) -> dict[str, str]:
    """The option of ``ray.init`` for the folder of its sockets and logs."""
    return {"_temp_dir": path}


def store_bytes(available: int, shared: int) -> int:
    """Bytes that Ray gives the object store of a machine with so many bytes of memory and of /dev/shm free."""
    cap = min(_LARGEST_STORE, max(_LEAST_STORE_CAP, int(_SHARED_SLACK * shared)))
    return min(int(_STORE_SHARE * available), cap)


def silence() -> None:
    """Keep Ray's messages and progress bars out of the terminal; its log files still have them."""
    import ray.data
    from ray._private import worker

    # with log_to_driver=False Ray still prints the raylet's messages about failed tasks
    worker._worker_logs_enabled = False
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL)


def heads_autoscaler() -> bool:
    """Whether this process is on the head of a cluster that adds nodes.

    ``ray up`` leaves a file there; KubeRay starts a head without an autoscaler of its own where another container has one.
    """
    by_launcher = Path("~/ray_bootstrap_config.yaml").expanduser().exists()
    return by_launcher or "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that one of Ray's carries: of a task, of Ray Train's controller, of its workers."""
    carried = [error.__cause__, *(getattr(error, name, None) for name in ("cause", "controller_failure"))]
    for found in (*carried, *getattr(error, "worker_failures", {}).values()):
        if isinstance(found, BaseException):
            yield found


def preempted(error: BaseException) -> bool:
    """Whether a worker died with a node that Ray knew to be taken away."""
    from ray.exceptions import RayActorError

    cause = getattr(error, "health_check_failure", error)
    return isinstance(cause, RayActorError) and bool(cause.preempted)


def wants_token(error: BaseException) -> bool:
    """Whether a cluster could not be joined for want of its token."""
    text = " ".join(str(part or "") for part in (error, error.__cause__, error.__context__))
    return any(words in text for words in ("uthentication", "auth token", "AuthToken"))


def other_version(error: BaseException) -> bool:
    """Whether a cluster could not be joined because it runs another version of Ray or Python."""
    return "ersion mismatch" in str(error)


def without_token() -> dict[str, str]:
    """The environment of a process that uses Ray as a client without a token."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}


def drain_command(address: str, node: str, message: str, seconds: int) -> list[str]:
    """The command that tells a cluster that a node will be taken away in so many seconds."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", message]
    return ["ray", "drain-node", "--address", address, "--node-id", node, *reason, "--deadline-remaining-seconds", str(seconds)]


class _EarlierTrial:
    """As much of a trial as a scheduler of Ray Tune looks at."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"earlier-{number}"


def show_earlier(scheduler: Any, curves: Iterable[Iterable[Mapping[str, float]]]) -> None:
    """Show a scheduler of Ray Tune the results of trials that ended before, so that it compares new ones with them."""
    from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

    for number, results in enumerate(curves):
        trial = _EarlierTrial(number)
        scheduler.on_trial_add(None, trial)
        for result in results:
            decision = scheduler.on_trial_result(None, trial, dict(result))
            if decision == TrialScheduler.STOP and isinstance(scheduler, MedianStoppingRule):
                # it accepts no more results of a trial that it has stopped
                break
