"""Which trainings a machine or a cluster holds: counted without importing Ray or torch, so that what can never run is refused at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leapray.errors import UserError
from leapray.recipe import Recipe, Resources

MINIMUM_LOCAL_CPUS = 8
"""Logical CPUs that a local cluster has at least."""
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Without one of these a Linux machine has no GPU that torch computes on: Nvidia's, Windows' for its guests, AMD's."""
_GROWING = 8
"""Trainings at a time on a cluster that grows, unless a recipe asks for another number."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Capacity:
    """Where trainings would run."""

    where: str
    nodes: Sequence[tuple[float, float]]
    """Logical CPUs and GPUs of each node."""
    cores: float
    """Real CPUs, which no machine has fewer of than it works with."""
    grows: bool = False
    """Whether nodes are added as they are asked for, so that what is there now says little."""


@dataclass(frozen=True)
class Plan:
    """How many of several trainings run at a time."""

    at_once: int
    threads: int
    """Of a process that trains on the CPU."""
    words: str
    """What was decided, and why, in one line."""


def joins() -> bool:
    """Whether this process is told to join a cluster, so that what it holds is known only then."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def lacks_resources(wanted: Mapping[str, float]) -> str:
    """What is said where no node has what a worker takes."""
    said = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    return f"resources.worker_resources: no node has {said}, as given to ray start --resources"


def lacks_labels(labels: Mapping[str, str]) -> str:
    """What is said where no node has the labels of those that the data's tasks run on."""
    said = ", ".join(f"{key}={value}" for key, value in labels.items())
    return f"resources.data_nodes: no node has the labels {said}; start one with ray start --labels {said.replace(' ', '')}"


def has_resources(node: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether a node's resources, by Ray's names, are those that a worker takes, or more."""
    return all(node.get(name, 0) >= amount for name, amount in wanted.items())


def has_labels(node: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= node.items()


def this_machine(use_gpu: bool) -> Capacity:
    """This machine as the local cluster that would be started on it; its GPUs are counted only where they are asked for."""
    own = os.cpu_count() or 1
    return Capacity("this machine", [(max(own, MINIMUM_LOCAL_CPUS), _gpus() if use_gpu else 0)], own)


def _gpus() -> int:
    if sys.platform == "linux" and not any(Path(device).exists() for device in _GPU_DEVICES):
        return 0
    # it takes seconds to import
    import torch

    return torch.cuda.device_count()


def require(recipe: Recipe) -> None:
    """Raise UserError, with the arithmetic, for a recipe of which not one training can be held by the machine it would run on."""
    searched = recipe.sweep is not None and any(key.startswith("resources.") for key in recipe.sweep.space)
    if not (joins() or searched):
        resources = recipe.resources
        plan_trainings(this_machine(resources.use_gpu), resources, flat=recipe.data.stream_from == "flat")


def plan_trainings(capacity: Capacity, resources: Resources, count: int = 1, *, flat: bool = False, most: int | None = None) -> Plan:
    """Share what there is among ``count`` trainings, at most ``most`` at a time.

    A training that scales ``flat`` files as it goes leaves one CPU for the tasks that do. Raises UserError, with the arithmetic, for a
    training that could never be held; a cluster that grows holds whatever it is asked for, some time. A local cluster has more logical
    CPUs than real ones: they decide what can run, the real ones what runs at once.
    """
    where, nodes, cores = capacity.where, capacity.nodes, capacity.cores
    cpus, gpus = (sum(parts) for parts in zip(*nodes, strict=True)) if nodes else (0.0, 0.0)
    processes, readers = resources.processes, int(flat)
    needed = processes * resources.cpus_per_worker + readers
    said = f"{_counted(processes, 'worker')} x {resources.cpus_per_worker} CPU" + (
        " + 1 CPU for the tasks that scale data" if readers else ""
    )
    if capacity.grows:
        at_once = min(count, most or _GROWING)
        if resources.use_gpu:
            said += f" and {resources.gpus_per_worker:g} GPU"
        words = f"{_counted(count, 'training')}, {at_once} at a time: each takes {said}, and {where} adds nodes as they are needed"
        return Plan(at_once, resources.cpus_per_worker, words)
    if cpus < needed:
        real = f", {cores:g} of them real" if cores < cpus else ""
        raise UserError(f"training wants {said} = {needed} CPUs, and {where} has {cpus:g}{real}")
    if resources.use_gpu:
        wanted = processes * resources.gpus_per_worker
        if gpus < wanted:
            asked = f"{_counted(processes, 'worker')} x {resources.gpus_per_worker:g} GPU = {wanted:g} GPU{'' if wanted == 1 else 's'}"
            raise UserError(f"training wants {asked}, and {where} has {gpus:g}")
        said += f" and {resources.gpus_per_worker:g} GPU"
    held = sum(_workers_held(resources, *node) for node in nodes)
    if held < processes:
        raise UserError(
            f"training wants {said}, and the {len(nodes)} nodes of {where} hold {_counted(held, 'such worker')}, each on one node"
        )
    fits = [count, max(int(cores // needed), 1), int(cpus // needed), held // processes]
    at_once = min([*fits, most] if most else fits)
    threads = max(int(cores // (at_once * processes)), resources.cpus_per_worker)
    has = f"{cores:g} CPUs" + (f" and {gpus:g} GPUs" if resources.use_gpu else "")
    return Plan(at_once, threads, f"{_counted(count, 'training')}, {at_once} at a time: each takes {said}, and {where} has {has}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _workers_held(resources: Resources, cpus: float, gpus: float) -> int:
    """How many workers a node holds. A worker's part is of one GPU: what two have left over is of no use."""
    held = int(cpus // resources.cpus_per_worker)
    return min(held, int(gpus) * int(1 / resources.gpus_per_worker + _ROUNDING)) if resources.use_gpu else held
