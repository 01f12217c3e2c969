"""How many actors predict, and what each takes of the cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from leapray.cluster import nodes
from leapray.errors import UserError

_FINEST = 10_000
"""Ray counts shares in parts of this."""
_GROWING = 64
"""The most predictors with models apart on a cluster that grows: each that waits for room for them has a CPU."""


@dataclass(frozen=True)
class Actors:
    """The actors of a prediction.

    A predictor reads, averages and writes. It holds all models itself, or, where they are ``apart``, has an actor for each of them.
    """

    predictors: int
    apart: bool
    cpus: float
    """Of a predictor, and of an actor that has a model on a CPU; one on a GPU takes none."""
    gpus: float
    """Of an actor that has models, 0 on a CPU."""
    threads: int
    """Of a process that has models on a CPU."""
    name: str = field(default_factory=lambda: f"leapray-{uuid4().hex}")
    """Of this prediction among those on a cluster."""


def plan_actors(models: int, pieces: int, *, use_gpu: bool = False, share: float | None = None, apart: bool | None = None) -> Actors:
    """Lay out a prediction of several pieces over the cluster that has been joined, which if it grows holds whatever is asked for.

    ``share`` is the GPU of an actor that has models, by default as much as lets one predictor's actors fill a GPU. Models are ``apart`` by
    default where there are several on GPUs. Raises UserError for GPUs or CPUs that are not there.
    """
    if apart is None:
        apart = use_gpu and models > 1
    holders = models if apart else 1
    if share is None:
        share = math.floor(_FINEST / holders) / _FINEST
    if nodes.autoscaled():
        return Actors(min(pieces, _GROWING) if apart else pieces, apart, 1, share if use_gpu else 0, 1)
    node_cpus = nodes.node_cpus()
    whole = sum(int(cpus) for cpus in node_cpus)
    if not whole:
        raise UserError("prediction needs a CPU, and no node of the cluster has one; start one with ray start")
    if use_gpu:
        return Actors(min(pieces, _held(share, holders) // holders, whole), apart, 1, share, 1)
    places = nodes.parallelism()
    predictors = min(pieces, max(places // holders, 1))
    cpus = _cpus(node_cpus, predictors * (1 + models)) if apart else 1
    return Actors(predictors, apart, cpus, 0, max(places // (predictors * holders), 1))


def _held(share: float, holders: int) -> int:
    """Actors with this share that the GPUs hold, each on one GPU."""
    gpus = int(nodes.gpus())
    if not gpus:
        raise UserError("prediction on a GPU was asked for, but Ray finds none here; leave --gpu out or start Ray where one is")
    held = gpus * int(1 / share + 1 / _FINEST)
    if held < holders:
        least = math.ceil(holders / gpus)
        raise UserError(
            f"{holders} models, each an actor with {share:g} of a GPU, and the cluster's {gpus} GPU{'s' * (gpus > 1)} hold {held}; "
            f"give --gpu-share {math.floor(100 / least) / 100:g}, or --together"
        )
    return held


def _cpus(node_cpus: Sequence[float], actors: int) -> float:
    """The CPUs that each of ``actors`` may take, at most 1, so that the nodes hold them all."""
    parts = 1
    while sum(int(cpus * parts) for cpus in node_cpus) < actors:
        parts += 1
    return math.floor(_FINEST / parts) / _FINEST
