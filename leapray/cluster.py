"""Starting or joining Ray, quietly, and telling a user's mistake from a crash wherever on the cluster it was raised."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from leapray import capacity
from leapray.capacity import MINIMUM_LOCAL_CPUS, Capacity, Plan
from leapray.errors import UserError
from leapray.recipe import Resources

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""With this the threads of a new process share the memory that :func:`leapray.training.memory.keep_freed_memory` is about."""
_LOCAL_ENVIRONMENT = {
    # ray.train.report waits for the controller's poll: 2 s by default
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # the first start on a cold disk reads libraries for longer than Ray's own limit
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # the threads of a process share the memory that a training keeps
    **ONE_ARENA,
    # the C++ part of a driver logs to the terminal, at its start even that it was told not to
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
# libgomp reads this as torch is loaded, which in a worker may be before leapray sets it
_CPU_ENVIRONMENT = {"GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"]}


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster of ``RAY_ADDRESS`` or of this process, or start a local one for the length of the block."""
    if ray.is_initialized():
        with user_errors():
            yield
        return
    start()
    try:
        with user_errors():
            yield
    finally:
        ray.shutdown()


def start(cpus: int | None = None) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start a quiet one here, dashboard on loopback.

    A local one gets at least 8 logical CPUs: controllers and data tasks reserve CPUs that they hardly use, and with two
    of them a trainer and its data would wait for each other.
    """
    for key, value in _LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            # whatever "ray start" left running on this machine: RAY_ADDRESS alone decides what is joined
            "address": "local",
            "num_cpus": cpus or max(os.cpu_count() or 1, MINIMUM_LOCAL_CPUS),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
        }
    with _without_stderr():
        try:
            ray.init(**options)
        except Exception:
            if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
                raise
            ray.init(**options)
    quiet()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Close the terminal to what native code writes there; an exception still tells what went wrong."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def quiet() -> None:
    """Keep Ray's progress bars and chatter out of the terminal; its log files have them still."""
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


_IN_TRACEBACK = re.compile(r"^(?:leapray\.errors\.)?UserError: (.+)$", re.MULTILINE)


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
    return UserError(match[1]) if match else None


def joins() -> bool:
    """Whether :func:`connected` joins a cluster that is there already, so that what it holds is known only then."""
    return ray.is_initialized() or capacity.joins()


def plan_trainings(resources: Resources, count: int = 1, *, flat: bool = False, most: int | None = None) -> Plan:
    """:func:`leapray.capacity.plan_trainings` on this cluster, or on the machine that would become one."""
    return capacity.plan_trainings(_capacity(resources.use_gpu), resources, count, flat=flat, most=most)


def _capacity(use_gpu: bool) -> Capacity:
    """Where trainings would run."""
    if not ray.is_initialized():
        return capacity.this_machine(use_gpu)
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(have.get("CPU", 0), have.get("GPU", 0)) for have in alive]
    cpus = sum(node[0] for node in nodes)
    if len(nodes) == 1:
        return Capacity("this machine", nodes, min(cpus, os.cpu_count() or 1))
    return Capacity("the cluster", nodes, cpus)


def training_environment(use_gpu: bool, modules: Iterable[str] = ()) -> dict[str, Any]:
    """The runtime environment of a process that trains: its variables, and modules for machines that do not have them."""
    return modules_environment(modules) | {"env_vars": ONE_ARENA if use_gpu else ONE_ARENA | _CPU_ENVIRONMENT}


def modules_environment(modules: Iterable[str]) -> dict[str, Any]:
    """A runtime environment that takes files and folders of modules to machines that do not have them; nothing on a cluster of this one."""
    shipped = sorted(set(modules))
    return {"py_modules": shipped} if shipped and (os.environ.get("RAY_ADDRESS") or len(ray.nodes()) > 1) else {}


def gpus() -> float:
    """The GPUs of the cluster."""
    return float(ray.cluster_resources().get("GPU", 0))


def parallelism(use_gpu: bool = False) -> int:
    """Actors that can work at once: one per GPU, or one per CPU; on one machine, per real CPU, however many logical ones it has."""
    resources = ray.cluster_resources()
    if use_gpu:
        return max(int(resources.get("GPU", 0)), 1)
    cpus = int(resources.get("CPU", 1))
    return min(cpus, os.cpu_count() or 1) if len(ray.nodes()) == 1 else cpus
