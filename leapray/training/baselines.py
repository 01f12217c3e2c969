"""Climatology and ridge regression as model directories, so that whatever takes a model takes what it has to beat too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from leapray import storage
from leapray.data.reading import read_file
from leapray.data.shards import Prepared, Rows
from leapray.data.tasks import run_tasks
from leapray.errors import UserError
from leapray.evaluation.baselines import LinearModel, Ridge
from leapray.evaluation.metrics import ErrorMoments
from leapray.models.directory import INFO_FILE, load_info, save_model
from leapray.models.linear import solved
from leapray.recipe import Choice

NAMES = ("climatology", "ridge")
_ALPHAS = (1.0, 10.0, 100.0, 1000.0)
_TASKS = 64

T = TypeVar("T")


def _fit(rows: Iterable[Rows]) -> Ridge:
    part = Ridge()
    for some in rows:
        part.update(some["inputs"], some["targets"])
    return part


def _try(models: Sequence[LinearModel], rows: Iterable[Rows]) -> list[ErrorMoments]:
    moments = [ErrorMoments() for _ in models]
    for some in rows:
        for model, errors in zip(models, moments, strict=True):
            errors.update(some["targets"], model.predict(some["inputs"]))
    return moments


def _over(prepared: Prepared, split: str, function: Callable[[Iterable[Rows]], T]) -> Iterator[T]:
    """What a function gives for the files of a split, some of them at a time, on the cluster."""
    files = [(manifest, index) for manifest in prepared.split(split) for index in range(len(manifest.files))]
    each = -(-len(files) // _TASKS)
    parts = [files[start : start + each] for start in range(0, len(files), each)] if files else []
    transform = prepared.transform
    return run_tasks(lambda task: function(read_file(*file, transform) for file in parts[task]), len(parts))


def fit_baselines(prepared: Prepared, directory: str) -> dict[str, str]:
    """Fit both on the training rows and write ``climatology`` and ``ridge`` below ``directory``; their model directories by name.

    Tasks on the cluster that has been joined do it. Ridge regression's alpha is the one of four that does best on the validation rows.
    Those that are there already are kept. Raises UserError where they were fitted on other data.
    """
    places = {name: storage.join(directory, name) for name in NAMES}
    fitted_on = [[manifest.source, manifest.checksum or manifest.input, manifest.rows] for manifest in prepared.split("train")]
    for place in places.values():
        if storage.exists(storage.join(place, INFO_FILE)) and load_info(place).recipe != {"fitted_on": fitted_on}:
            raise UserError(f"{place}: was fitted on other data; choose another place or remove it")
    if all(storage.exists(storage.join(place, INFO_FILE)) for place in places.values()):
        return places
    ridge = Ridge()
    for part in _over(prepared, "train", _fit):
        ridge.merge(part)
    models = [ridge.solve(alpha) for alpha in _ALPHAS]
    moments = [ErrorMoments() for _ in models]
    for parts in _over(prepared, "validation", partial(_try, models)):
        moments = [errors + part for errors, part in zip(moments, parts, strict=True)]
    best = models[int(np.argmax([errors.score().learned for errors in moments]))] if moments[0].count else models[0]
    for name, model in (("climatology", ridge.climatology()), ("ridge", best)):
        recipe = {"fitted_on": fitted_on}
        save_model(places[name], solved(model).state_dict(), Choice(name="linear"), prepared.transform, recipe=recipe)
    return places
