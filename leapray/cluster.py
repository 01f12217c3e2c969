"""Starting or joining Ray, quietly, and telling a user's mistake from a crash wherever on the cluster it was raised."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray._private import worker

from leapray import capacity, ray_needs, ray_start, shadows
from leapray.capacity import MINIMUM_LOCAL_CPUS, Capacity, Plan
from leapray.errors import PassingError, UserError
from leapray.faults import shown
from leapray.recipe import Resources

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""With this the threads of a new process share the memory that :func:`leapray.training.memory.keep_freed_memory` is about."""
_LOCAL_ENVIRONMENT = {
    # ray.train.report waits for the controller's poll: 2 s by default
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # an elastic training may wait for a place on a node that has just gone: 60 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    # the first start on a cold disk reads libraries for longer than Ray's own limit
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # the threads of a process share the memory that a training keeps
    **ONE_ARENA,
    # the C++ part of a driver logs to the terminal, at its start even that it was told not to
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_CONNECT_SECONDS = 5.0
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable of the process of a job that was submitted."""
_GROWS = "LEAPRAY_CLUSTER_GROWS"
"""Variable of a process that trains on a cluster which adds nodes."""
# libgomp reads this as torch is loaded, which in a worker may be before leapray sets it
_CPU_ENVIRONMENT = {"GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"]}


@contextmanager
def connected(modules: Iterable[str] = ()) -> Iterator[None]:
    """Join the cluster of ``RAY_ADDRESS`` or of this process, or start a local one for the length of the block.

    ``modules`` are files and folders of the working directory that the processes of a cluster which is joined are to find too.
    Raises UserError where a cluster is named that cannot be joined. SIGTERM, by which a job is stopped, ends the block as Ctrl-C does.
    """
    if ray.is_initialized():
        with user_errors():
            yield
        return
    start(modules=modules)
    try:
        with user_errors(), _ended_by_sigterm():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the block as Ctrl-C does, which Ray lets through; by itself it would print a stack of its native code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def start(cpus: int | None = None, modules: Iterable[str] = ()) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start a quiet one here, dashboard on loopback.

    A local one gets at least 8 logical CPUs: controllers and data tasks reserve CPUs that they hardly use, and with two
    of them a trainer and its data would wait for each other. Raises UserError where a cluster is named that cannot be joined, where
    Ray cannot be started (:func:`leapray.ray_start.start_here`), and for files here that Ray would import in place of its own modules.
    """
    ray_needs.refuse_names()
    shadows.refuse(os.getcwd())
    for key, value in _LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if capacity.joins():
        _join(os.environ["RAY_ADDRESS"], sorted(set(modules)))
    else:
        ray_start.start_here(cpus or max(os.cpu_count() or 1, MINIMUM_LOCAL_CPUS))
    quiet()


def _join(address: str, modules: Sequence[str]) -> None:
    """Join the cluster at an address, which :func:`refuse_address` has nothing against; tell in a sentence why it cannot be joined."""
    refuse_address(address)
    # a job that was submitted has its working directory everywhere
    shipped = {} if _SUBMITTED in os.environ or not modules else {"runtime_env": {"py_modules": list(modules)}}
    try:
        ray_start.limited(lambda: ray.init(**ray_start.SILENT, **shipped), f"RAY_ADDRESS {address}: the cluster could not be joined")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"RAY_ADDRESS {address}: {_why_not_joined(error)}") from error


def refuse_address(address: str) -> None:
    """Raise UserError for an address of other things than a cluster, and for one at which nothing answers; "auto" finds its own."""
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS {shown(address)}: expected HOST:PORT of a cluster's head, from a machine of the cluster; from elsewhere give the "
            f"verb to it with: ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/run.py VERB"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS {address}: no cluster answers there ({error}); start one with ray start --head, or unset RAY_ADDRESS "
            f"to run on this machine alone"
        ) from error


def _why_not_joined(error: BaseException) -> str:
    text = " ".join(part for part in (str(error), str(error.__cause__ or ""), str(error.__context__ or "")))
    if "uthentication" in text or "auth token" in text or "AuthToken" in text:
        return (
            "the cluster wants its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token as on its head "
            "(ray get-auth-token there prints it)"
        )
    if "ersion mismatch" in text:
        return " ".join(str(error).split())
    return f"the cluster could not be joined ({' '.join(str(error).split())[:300]})"


def quiet() -> None:
    """Keep Ray's progress bars and chatter out of the terminal; its log files have them still."""
    # what raylets say of a task that failed is in its exception, or it was done again; Ray prints it with log_to_driver off too
    worker._worker_logs_enabled = False
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL)


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise the UserError that lies inside an exception of Ray as itself; let every other exception pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if found := find_user_error(error):
            raise found from error
        raise


_IN_TRACEBACK = re.compile(r"^(?:leapray\.errors\.)?(User|Passing)Error: (.+)$", re.MULTILINE)


def find_user_error(error: object, depth: int = 8) -> UserError | None:
    """The UserError among an exception's causes, or the one in the remote traceback that a Ray exception carries as text."""
    if not isinstance(error, BaseException) or depth == 0:
        return None
    if isinstance(error, UserError):
        return error
    nested = [error.__cause__, *(getattr(error, name, None) for name in ("cause", "controller_failure"))]
    for inner in (*nested, *getattr(error, "worker_failures", {}).values()):
        if found := find_user_error(inner, depth - 1):
            return found
    match = _IN_TRACEBACK.search(str(error))
    return {"User": UserError, "Passing": PassingError}[match[1]](match[2]) if match else None


def joins() -> bool:
    """Whether :func:`connected` joins a cluster that is there already, so that what it holds is known only then."""
    return ray.is_initialized() or capacity.joins()


def plan_trainings(resources: Resources, count: int = 1, *, flat: bool = False, most: int | None = None) -> Plan:
    """:func:`leapray.capacity.plan_trainings` on this cluster, or on the machine that would become one.

    Raises UserError too where ``flat`` files would be scaled on nodes that are not there.
    """
    if flat and ray.is_initialized():
        require_data_nodes(resources.data_nodes)
    # tasks that have nodes of their own take nothing from those that train
    return capacity.plan_trainings(_capacity(resources), resources, count, flat=flat and not resources.data_nodes, most=most)


def _capacity(resources: Resources) -> Capacity:
    """Where trainings would run."""
    if not ray.is_initialized():
        return capacity.this_machine(resources.use_gpu)
    alive = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and capacity.has_resources(node["Resources"], resources.worker_resources)
    ]
    if not alive and not autoscaled():
        raise UserError(capacity.lacks_resources(resources.worker_resources))
    nodes = [(have.get("CPU", 0), have.get("GPU", 0)) for have in alive]
    cpus = sum(node[0] for node in nodes)
    if len(ray.nodes()) == 1 and not autoscaled():
        return Capacity("this machine", nodes, min(cpus, os.cpu_count() or 1))
    also = " and ".join(resources.worker_resources)
    return Capacity(f"the cluster's nodes with {also}" if also else "the cluster", nodes, cpus, autoscaled())


def autoscaled() -> bool:
    """Whether the cluster of this process adds nodes as they are asked for.

    Ray's cluster launcher leaves a file on the head, from which jobs are run, and KubeRay starts a head whose autoscaler is apart without
    one of its own; a process that trains is told by the one that started it.
    """
    if os.environ.get(_GROWS):
        return True
    by_launcher = Path("~/ray_bootstrap_config.yaml").expanduser().exists()
    return capacity.joins() and (by_launcher or "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", ""))


def training_environment(use_gpu: bool) -> dict[str, Any]:
    """The runtime environment of a process that trains."""
    variables = ONE_ARENA if use_gpu else ONE_ARENA | _CPU_ENVIRONMENT
    return {"env_vars": variables | ({_GROWS: "1"} if autoscaled() else {})}


def gpus() -> float:
    """The GPUs of the cluster."""
    return float(ray.cluster_resources().get("GPU", 0))


def node_cpus() -> list[float]:
    """The logical CPUs of each node."""
    return [float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def require_data_nodes(labels: Mapping[str, str]) -> None:
    """Raise UserError where no node has these labels, for tasks would wait for one for ever.

    It is asked where a verb begins: a worker cannot tell whether the cluster adds nodes (:func:`autoscaled`), and has not made a
    mistake when they have just gone.
    """
    if labels and not autoscaled() and not any(_labelled(node, labels) for node in ray.nodes()):
        raise UserError(capacity.lacks_labels(labels))


@contextmanager
def data_nodes(labels: Mapping[str, str]) -> Iterator[None]:
    """Within the block Ray Data's tasks run on nodes with these labels, none meaning all."""
    options = ray.data.DataContext.get_current().execution_options
    kept, options.label_selector = options.label_selector, dict(labels) or None
    try:
        yield
    finally:
        options.label_selector = kept


def parallelism(use_gpu: bool = False) -> int:
    """Actors or tasks that can work at once: one per GPU, or one per CPU of the nodes that :func:`data_nodes` leaves them.

    On one machine it is one per real CPU, however many logical ones it has.
    """
    labels = ray.data.DataContext.get_current().execution_options.label_selector or {}
    nodes = [node["Resources"] for node in ray.nodes() if _labelled(node, labels)]
    if use_gpu:
        return max(int(sum(have.get("GPU", 0) for have in nodes)), 1)
    cpus = max(int(sum(have.get("CPU", 0) for have in nodes)), 1)
    return min(cpus, os.cpu_count() or 1) if len(ray.nodes()) == 1 else cpus


def _labelled(node: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return node["Alive"] and capacity.has_labels(node.get("Labels", {}), labels)
