"""Climatology and ridge regression as model directories, so that whatever takes a model takes what it has to beat too."""

from __future__ import annotations

import numpy as np

from leapray import storage
from leapray.data.reading import read_split
from leapray.data.shards import Prepared
from leapray.errors import UserError
from leapray.evaluation.baselines import Ridge
from leapray.evaluation.metrics import ErrorMoments
from leapray.models.directory import INFO_FILE, load_info, save_model
from leapray.models.linear import solved
from leapray.recipe import Choice

NAMES = ("climatology", "ridge")
_ALPHAS = (1.0, 10.0, 100.0, 1000.0)


def fit_baselines(prepared: Prepared, directory: str) -> dict[str, str]:
    """Fit both on the training rows and write ``climatology`` and ``ridge`` below ``directory``; their model directories by name.

    Ridge regression's alpha is the one of four that does best on the validation rows. Those that are there already are kept. Raises
    UserError where they were fitted on other data.
    """
    places = {name: storage.join(directory, name) for name in NAMES}
    fitted_on = [[manifest.source, manifest.checksum or manifest.input, manifest.rows] for manifest in prepared.split("train")]
    for place in places.values():
        if storage.exists(storage.join(place, INFO_FILE)) and load_info(place).recipe != {"fitted_on": fitted_on}:
            raise UserError(f"{place}: was fitted on other data; choose another place or remove it")
    if all(storage.exists(storage.join(place, INFO_FILE)) for place in places.values()):
        return places
    ridge = Ridge()
    for rows in read_split(prepared, "train"):
        ridge.update(rows["inputs"], rows["targets"])
    models = [ridge.solve(alpha) for alpha in _ALPHAS]
    moments = [ErrorMoments() for _ in models]
    for rows in read_split(prepared, "validation"):
        for model, errors in zip(models, moments, strict=True):
            errors.update(rows["targets"], model.predict(rows["inputs"]))
    best = models[int(np.argmax([errors.score().learned for errors in moments]))] if moments[0].count else models[0]
    for name, model in (("climatology", ridge.climatology()), ("ridge", best)):
        recipe = {"fitted_on": fitted_on}
        save_model(places[name], solved(model).state_dict(), Choice(name="linear"), prepared.transform, recipe=recipe)
    return places
