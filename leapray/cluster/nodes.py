"""What the nodes of the joined cluster hold, and on which of them work is placed (Ray)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from leapray.cluster import capacity, ray_compat
from leapray.cluster.capacity import Capacity, Plan
from leapray.errors import UserError
from leapray.recipe import Resources

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""With this the threads of a new process share the memory that :func:`leapray.training.memory.keep_freed_memory` is about."""
_GROWS = "LEAPRAY_CLUSTER_GROWS"
"""Variable of a process that trains on a cluster which adds nodes."""
# libgomp reads this as torch is loaded, which in a worker may be before leapray sets it
_CPU_ENVIRONMENT = {"GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"]}


def plan_trainings(resources: Resources, count: int = 1, *, flat: bool = False, most: int | None = None) -> Plan:
    """:func:`leapray.cluster.capacity.plan_trainings` on this cluster, or on the machine that would become one.

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

    The head of such a cluster, from which jobs are run, knows it; a process that trains is told by the one that started it.
    """
    return bool(os.environ.get(_GROWS)) or (capacity.joins() and ray_compat.heads_autoscaler())


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
