"""Models that are each an actor of their own, on their share of the GPUs or CPUs (Ray).

The process that reads puts rows into the object store once. Every model takes them from there, and gives its own output back, so that
models work at the same time whatever number of files there is, each on a node that has what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import ray
import torch
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from leapray.inference.actors import Actors
from leapray.inference.emulators import Emulators, Predicted
from leapray.inference.weights import mean_weights
from leapray.models.emulator import Physics
from leapray.training.memory import keep_freed_memory

_RETRIES = 3
"""Times that rows are given again to a model whose process or node died with them."""


class _Model:
    """An actor: one model on its device."""

    def __init__(self, model: str, use_gpu: bool, threads: int) -> None:
        keep_freed_memory()
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self.emulator = Emulators.load([model], mean_weights(1), torch.device("cuda" if use_gpu else "cpu"))

    def tendencies(self, inputs: np.ndarray) -> np.ndarray:
        """Its own output ``(n, 368)`` for raw columns ``(n, 556)``, before the physics."""
        # what lies in the object store cannot be written to, as torch wants it
        return self.emulator.predict(inputs.copy(order="K"), members=True).members[0]


class Apart:
    """The same as :class:`leapray.inference.emulators.Emulators`, with an actor for each model, begun here and ended with this process.

    ``weights`` is float64 ``(m, 368)``.
    """

    def __init__(self, models: Sequence[str], weights: np.ndarray, actors: Actors) -> None:
        self.weights = np.asarray(weights, np.float64)
        self.physics = Physics()
        place = _place(len(models), actors)
        self.models = [
            ray.remote(_Model)
            .options(
                num_cpus=0 if actors.gpus else actors.cpus,
                num_gpus=actors.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=index),
                max_restarts=-1,
                max_task_retries=_RETRIES,
            )
            .remote(model, actors.gpus > 0, actors.threads)
            for index, model in enumerate(models)
        ]

    def predict(self, inputs: np.ndarray, *, members: bool = False) -> Predicted:
        """Predictions for raw columns ``(n, 556)``, float64, fastest column by column; of each member too if ``members``."""
        rows = ray.put(inputs)
        outputs = ray.get([model.tendencies.remote(rows) for model in self.models])
        mean = np.zeros_like(outputs[0])
        for weights, output in zip(self.weights, outputs, strict=True):
            mean += weights * output
        ensemble = self.physics(torch.from_numpy(inputs), torch.from_numpy(mean)).numpy()
        return Predicted(ensemble, tuple(outputs) if members else ())


def _place(models: int, actors: Actors) -> PlacementGroup:
    """Room for all models at once, so that two predictors never wait for each other; a predictor that was begun again has its own still."""
    name = f"{actors.name}-{ray.get_runtime_context().get_actor_id()}"
    try:
        return get_placement_group(name)
    except ValueError:
        takes = {"GPU": actors.gpus} if actors.gpus else {"CPU": actors.cpus}
        return placement_group([takes] * models, strategy="PACK", name=name)


@contextmanager
def released(actors: Actors) -> Iterator[None]:
    """Give the room that predictors had for their models back when the block ends: Ray keeps it as long as the driver."""
    try:
        yield
    finally:
        for place in placement_group_table().values():
            if place["name"].startswith(actors.name) and place["state"] != "REMOVED":
                remove_placement_group(get_placement_group(place["name"]))
