"""Networks that are solved for instead of trained by steps, climatology and ridge regression, as runs like any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from leapray.data.reading import read_file
from leapray.data.shards import Manifest, Prepared, Rows
from leapray.data.tasks import run_tasks
from leapray.data.transform import Transform
from leapray.evaluation.baselines import Ridge
from leapray.evaluation.intervals import TimedMoments
from leapray.models.directory import save_model
from leapray.models.linear import Climatology, ClimatologyOptions, RidgeOptions, solved
from leapray.models.registry import CLIMATOLOGY, network_options
from leapray.recipe import Recipe
from leapray.training.loop import score_figures
from leapray.training.run import RecordLog, Run
from leapray.training.scoring import score_rows

_ALPHAS = (1.0, 10.0, 100.0, 1000.0)
_TASKS = 64

T = TypeVar("T")


def solve(recipe: Recipe, prepared: Prepared, run: Run, *, alone: bool = False) -> None:
    """Solve for the network of a recipe and write the run's record, of one validation, and its model.

    Tasks on the cluster that has been joined read the rows, or this process ``alone``, as a trial of a sweep must. Of the recipe's
    ``training`` only ``run``, ``select`` and ``sources`` are used: every training row of these sources counts once.
    """
    over = _Rows(prepared, recipe.trained, alone)
    started, select = time.perf_counter(), recipe.training.select
    transform = prepared.transform.climatology() if recipe.network.name == CLIMATOLOGY else prepared.transform
    tried: list[torch.nn.Module] = (
        [Climatology(ClimatologyOptions(), transform.channels)] if recipe.network.name == CLIMATOLOGY else _ridge(recipe, over)
    )
    seconds = time.perf_counter() - started
    scores = [moments.score() for moments in _score(tried, transform, prepared.transform, over)]
    best = max(range(len(tried)), key=lambda place: scores[place].chosen(select))
    place = {"event": "validation", "epoch": 1, "step": 1, "steps": 1, "seconds": seconds}
    record = place | {"score": scores[best].chosen(select)} | score_figures(scores[best])
    record["val_seconds"] = time.perf_counter() - started - seconds
    RecordLog(run, []).add(record)
    network = recipe.network
    save_model(run.model, tried[best].state_dict(), network, transform, recipe=recipe.to_dict(), history=[record])


def _ridge(recipe: Recipe, over: _Rows) -> list[torch.nn.Module]:
    """A linear map for every alpha that is asked for or tried."""
    options = network_options(recipe.network)
    assert isinstance(options, RidgeOptions)
    ridge = Ridge()
    for part in over.train(_fit):
        ridge.merge(part)
    return [solved(ridge.solve(alpha), over.prepared.transform.channels) for alpha in ((options.alpha,) if options.alpha else _ALPHAS)]


def _fit(rows: Iterable[Rows]) -> Ridge:
    part = Ridge()
    for some in rows:
        part.update(some["inputs"], some["targets"])
    return part


def _score(networks: Sequence[torch.nn.Module], own: Transform, transform: Transform, over: _Rows) -> list[TimedMoments]:
    """Moments of every network on the validation rows, which ``transform`` scaled; its ``own`` takes its output back."""
    total = [TimedMoments(transform.statistics) for _ in networks]
    for parts in over.validation(partial(_moments, networks, own, transform)):
        total = [moments + part for moments, part in zip(total, parts, strict=True)]
    return total


def _moments(networks: Sequence[torch.nn.Module], own: Transform, transform: Transform, rows: Iterable[Rows]) -> list[TimedMoments]:
    total = [TimedMoments(transform.statistics) for _ in networks]
    for some in rows:
        for network, moments in zip(networks, total, strict=True):
            score_rows(network, some, moments, transform, own)
    return total


@dataclass(frozen=True)
class _Rows:
    """The rows of a training, some files at a time."""

    prepared: Prepared
    sources: Sequence[str]
    """Whose training rows count."""
    alone: bool
    """Whether this process reads all of them."""

    def train(self, function: Callable[[Iterable[Rows]], T]) -> Iterator[T]:
        """What a function gives for the training rows, part by part."""
        return self._over([manifest for manifest in self.prepared.split("train") if manifest.source in self.sources], function)

    def validation(self, function: Callable[[Iterable[Rows]], T]) -> Iterator[T]:
        """What a function gives for the validation rows, part by part."""
        return self._over(self.prepared.split("validation"), function)

    def _over(self, manifests: Sequence[Manifest], function: Callable[[Iterable[Rows]], T]) -> Iterator[T]:
        files = [(manifest, index) for manifest in manifests for index in range(len(manifest.files))]
        each = -(-len(files) // _TASKS)
        parts = [files[start : start + each] for start in range(0, len(files), each)] if files else []
        transform = self.prepared.transform

        def task(number: int) -> T:
            return function(read_file(*file, transform) for file in parts[number])

        return map(task, range(len(parts))) if self.alone else run_tasks(task, len(parts))
