"""What is asked of a plan: how large a cluster, and the rates that the user knows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leapray.cluster.capacity import Capacity, plan_trainings, this_machine
from leapray.errors import UserError
from leapray.planning.model import Cluster
from leapray.planning.rates import CPUS_PER_GPU, GPUS_PER_NODE
from leapray.recipe import Recipe, load_recipe

_POSITIVE = ("rate", "read_rate", "gpu_tflops", "storage_gbps", "network_gbps", "link_gbps", "cpus_per_node", "gpus_per_node", "seconds")


@dataclass(frozen=True)
class Request:
    """The options of ``leapray plan``; None is what the user did not say. Raises UserError for what cannot be."""

    gpus: int
    workers: int | None = None
    """CPU workers, where there are no GPUs."""
    rate: float | None = None
    """Training rows a second of one worker."""
    read_rate: float | None = None
    """Rows a second that one CPU makes ready."""
    gpu_tflops: float | None = None
    storage_gbps: float | None = None
    network_gbps: float | None = None
    link_gbps: float | None = None
    cpus_per_node: int | None = None
    gpus_per_node: int | None = None
    measure: bool = False
    seconds: float = 5.0
    """Of each measurement."""

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise UserError(f"--gpus {self.gpus}: expected the GPUs to train on, or 0 to train on CPUs")
        if self.workers is not None and (self.gpus or self.workers < 0):
            why = "are one for each GPU" if self.gpus else "cannot be fewer than 0"
            raise UserError(f"--workers {self.workers} with --gpus {self.gpus}: workers {why}; give --workers with --gpus 0 alone")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")
        if self.gpu_tflops is not None and (self.rate is not None or not self.gpus):
            why = "--rate says already how fast a worker is" if self.gpus else "with --gpus 0 there is none"
            raise UserError(f"--gpu-tflops {self.gpu_tflops:g}: is a GPU's arithmetic, and {why}; leave it out")
        if self.gpus_per_node is not None and not self.gpus:
            raise UserError(f"--gpus-per-node {self.gpus_per_node}: with --gpus 0 there are none; leave it out")


def planned_recipe(url: str, overrides: Sequence[str], request: Request) -> Recipe:
    """The recipe as it would be run on what is asked for. Raises UserError for a bad recipe, or one that so many workers cannot share."""
    if request.gpus:
        resources = [f"resources.workers={request.gpus}", "resources.use_gpu=true", "resources.gpus_per_worker=1"]
    else:
        resources = ["resources.use_gpu=false"]
        if request.workers is not None:
            resources.append(f"resources.workers={request.workers}")
    return load_recipe(url, [*overrides, *resources])


def cluster_of(recipe: Recipe, request: Request, remote: bool) -> tuple[Cluster, int]:
    """The nodes that a recipe's workers would share, and the threads of each that computes on CPUs.

    Raises UserError, with the arithmetic, where they do not hold them.
    """
    resources, cpus = recipe.resources, request.cpus_per_node
    if resources.use_gpu:
        cluster = gpu_cluster(request, remote)
        if cluster.data_cpus <= 0:
            raise UserError(f"--cpus-per-node {cpus} for {cluster.together} GPUs leaves none to read rows; expected more than one for each")
        capacity = _capacity(cluster, cluster.together)
    else:
        workers = max(resources.workers, 1)
        per_node = workers if cpus is None else max(cpus // resources.cpus_per_worker, 1)
        here = this_machine(use_gpu=False)
        cluster = Cluster(workers, False, per_node, cpus or here.cores, remote)
        capacity = here if cpus is None else _capacity(cluster, 0)
    threads = plan_trainings(capacity, resources, flat=recipe.data.stream_from == "flat").threads
    return cluster, min(threads, os.cpu_count() or 1)


def gpu_cluster(request: Request, remote: bool, gpus: int | None = None) -> Cluster:
    """Nodes for the GPUs that are asked for, or for so many others. Unless it is said how many CPUs they have, each GPU has its share."""
    workers, per_node = gpus or request.gpus, request.gpus_per_node or GPUS_PER_NODE
    cluster = Cluster(workers, True, per_node, request.cpus_per_node or CPUS_PER_GPU * min(workers, per_node), remote)
    # what several nodes read must come to them
    return replace(cluster, remote=remote or cluster.nodes > 1)


def _capacity(cluster: Cluster, gpus: int) -> Capacity:
    return Capacity("the planned cluster", [(cluster.cpus_per_node, gpus)] * cluster.nodes, cluster.cpus_per_node * cluster.nodes)
