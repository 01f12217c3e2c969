"""Models that are each an actor of their own, on their share of the GPUs or CPUs (Ray).

The process that reads puts rows into the object store once. Every model takes them from there, and gives its own output back, so that
models work at the same time whatever number of files there is, each on a node that has what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from leapray.climsim.schema import VariableSet
from leapray.errors import UserError
from leapray.faults import told
from leapray.inference.actors import Actors
from leapray.inference.emulators import Members, Predicted, averaged
from leapray.inference.weights import Combination
from leapray.models.emulator import Physics
from leapray.training.memory import keep_freed_memory

_AGAIN = 3
"""Times that a model is begun again at the same rows, or while it loads."""
_PATIENCE_S = 60.0


class _Model:
    """An actor: one model on its device."""

    def __init__(self, model: str, variables: VariableSet, use_gpu: bool, threads: int) -> None:
        keep_freed_memory()
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self.members = Members.load([model], torch.device("cuda" if use_gpu else "cpu"), variables)

    def tendencies(self, inputs: np.ndarray) -> np.ndarray:
        """Its own output ``(n, t)`` for raw columns ``(n, i)``, before the physics."""
        # what lies in the object store cannot be written to, as torch wants it
        return self.members.tendencies(inputs.copy(order="K"))[0]

    def loaded(self) -> None:
        """Return once the model is there."""


class Apart:
    """Predicts what :class:`leapray.inference.emulators.Emulators` does, with an actor for each model; they end with this process.

    It waits until the cluster has room for all models at once, so that two of these never hold
    what the other waits for. A model whose process or node dies is begun again, three times at most at the same rows or while it loads.
    """

    def __init__(self, models: Sequence[str], variables: VariableSet, combination: Combination, actors: Actors) -> None:
        self.weights, self.constant = torch.from_numpy(combination.weights), torch.from_numpy(combination.constant)
        self._variables, self.physics = variables, Physics(variables)
        self._models, self._actors, self._lock = list(models), actors, Lock()
        self._place = _place(len(models), actors)
        while not self._place.wait(_PATIENCE_S):
            pass
        self._begun = [self._begin(index) for index in range(len(models))]
        self._of_each(lambda model: model.loaded.remote())

    def __del__(self) -> None:
        # others may wait for the room; whatever is not given back here is by released
        with suppress(Exception):
            remove_placement_group(self._place)

    def predict(self, inputs: np.ndarray, *, members: bool = False) -> Predicted:
        """Predictions for raw columns ``(n, i)``, float64, fastest column by column; of each member too if ``members``."""
        rows = ray.put(inputs)
        outputs = self._of_each(lambda model: model.tendencies.remote(rows))

        def physical(index: int, rows: slice) -> torch.Tensor:
            # what lies in the object store cannot be written to
            return torch.from_numpy(outputs[index][rows].copy(order="K"))

        with torch.inference_mode():
            ensemble = averaged(torch.from_numpy(inputs), physical, self.weights, self.constant, self.physics)
        return Predicted(ensemble, tuple(outputs) if members else ())

    def _of_each(self, ask: Callable[[Any], ray.ObjectRef]) -> list[Any]:
        """What each model answers; all are asked at once."""
        asked = [(model, ask(model)) for model in self._begun]
        return [self._answer(index, ask, *one) for index, one in enumerate(asked)]

    def _answer(self, index: int, ask: Callable[[Any], ray.ObjectRef], model: Any, asked: ray.ObjectRef) -> Any:
        """What a model answers, who is begun and asked again if it dies."""
        for death in range(_AGAIN + 1):
            try:
                return ray.get(asked)
            except RayActorError as error:
                # a model that cannot be loaded says why
                if error.actor_init_failed:
                    raise
                if death == _AGAIN:
                    reason = told(" ".join(str(error).split()), 300)
                    raise UserError(f"{self._models[index]}: its process died {death + 1} times at the same work ({reason})") from error
            model = self._begun_again(index, model)
            asked = ask(model)
        raise AssertionError

    def _begun_again(self, index: int, dead: Any) -> Any:
        with self._lock:
            # another thread may have met the same death
            if self._begun[index] is dead:
                self._begun[index] = self._begin(index)
            return self._begun[index]

    def _begin(self, index: int) -> Any:
        actors = self._actors
        return (
            ray.remote(_Model)
            .options(
                num_cpus=0 if actors.gpus else actors.cpus,
                num_gpus=actors.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._place, placement_group_bundle_index=index),
            )
            .remote(self._models[index], self._variables, actors.gpus > 0, actors.threads)
        )


def _place(models: int, actors: Actors) -> PlacementGroup:
    """Room for a predictor's models; one that was begun again finds its own."""
    name = f"{actors.name}-{ray.get_runtime_context().get_actor_id()}"
    try:
        return get_placement_group(name)
    except ValueError:
        takes = {"GPU": actors.gpus} if actors.gpus else {"CPU": actors.cpus}
        return placement_group([takes] * models, strategy="PACK", name=name)


@contextmanager
def released(actors: Actors) -> Iterator[None]:
    """Give back, when the block ends, the room of predictors that were killed: Ray would keep it as long as the driver."""
    try:
        yield
    finally:
        # whatever ended the block is what is told
        with suppress(Exception):
            for place in placement_group_table().values():
                if place["name"].startswith(actors.name) and place["state"] != "REMOVED":
                    with suppress(ValueError):
                        remove_placement_group(get_placement_group(place["name"]))
