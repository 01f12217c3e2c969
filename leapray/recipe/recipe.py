"""One experiment as a whole: data, network, training and resources, and the variants or trials that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

import yaml
from pydantic import model_validator

from leapray import storage
from leapray.errors import UserError
from leapray.recipe.data import Data
from leapray.recipe.ensemble import Ensemble
from leapray.recipe.load import assign, merged, validate
from leapray.recipe.sections import Choice, Section
from leapray.recipe.training import Resources, Training
from leapray.recipe.variants import Finetune, Sweep

_LANES = 8
_MADE_OF_IT = ("finetune", "sweep", "ensemble")
"""Sections that do not belong to a single training."""


class Recipe(Section):
    """One experiment: data, network, training and resources."""

    name: str
    data: Data
    network: Choice
    training: Training
    resources: Resources = Resources()
    finetune: Finetune | None = None
    """Variants of a base model, for ``leapray finetune``."""
    sweep: Sweep | None = None
    """A search, for ``leapray sweep``."""
    ensemble: Ensemble | None = None
    """Models and their weights, for ``leapray ensemble``."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        workers = max(self.resources.workers, 1)
        lanes = self.lanes
        if self.resources.elastic and lanes < workers:
            raise ValueError(f"training.lanes {lanes} are fewer than resources.workers {workers}, so that some would have nothing to do")
        if lanes % workers and not self.resources.elastic:
            raise ValueError(f"training.lanes {lanes} must be a multiple of resources.workers {workers}")
        if self.training.batch_size % lanes:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} must be a multiple of training.lanes {lanes}, "
                f"by default {_LANES} or the next multiple of the workers"
            )
        # of a worker with the fewest lanes
        rows = lanes // workers * (self.training.batch_size // lanes)
        if self.training.accumulate > rows:
            raise ValueError(f"training.accumulate {self.training.accumulate} is more than the {rows} rows of a worker's step")
        return self

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        for name in self.training.sources or ():
            if name not in self.data.sources or self.data.sources[name].train is None:
                known = [other for other, source in self.data.sources.items() if source.train is not None]
                raise ValueError(f"training.sources names {name!r}, expected sources with training months: {', '.join(known)}")
        weighted = [name for name, source in self.data.sources.items() if source.weight is not None]
        for name in weighted:
            if self.training.pairs:
                raise ValueError(
                    f"data.sources.{name}.weight and training.pairs exclude each other: pairs take equally many rows of each source"
                )
            if self.data.sources[name].train is None:
                raise ValueError(f"data.sources.{name}.weight is the weight of training rows, but the source has no training months")
        if self.training.pairs:
            trained = self.trained
            if len(trained) < 2:
                raise ValueError(f"training.pairs needs two sources with training months, found {', '.join(trained) or 'none'}")
            if self.training.batch_size // self.lanes % len(trained):
                raise ValueError(
                    f"training.pairs takes equally many rows of {len(trained)} sources: training.batch_size {self.training.batch_size} "
                    f"must be a multiple of {self.lanes} lanes x {len(trained)} sources"
                )
        return self

    @property
    def trained(self) -> list[str]:
        """The sources that are trained on, in the recipe's order."""
        chosen = self.training.sources
        return [name for name, source in self.data.sources.items() if source.train is not None and (chosen is None or name in chosen)]

    @property
    def shares(self) -> dict[str, float] | None:
        """What each training source gives to every step, in proportion; None mixes them by their rows."""
        weights = {name: self.data.sources[name].weight for name in self.trained}
        if self.training.pairs:
            return dict.fromkeys(weights, 1.0)
        return {name: weight or 1.0 for name, weight in weights.items()} if any(weights.values()) else None

    @property
    def lanes(self) -> int:
        workers = max(self.resources.workers, 1)
        return self.training.lanes or -(-_LANES // workers) * workers

    @model_validator(mode="after")
    def _variants(self) -> Self:
        try:
            for name in self.finetune.trained if self.finetune else ():
                self.variant(name)
            for key, dimension in self.sweep.space.items() if self.sweep else ():
                for value in dimension.probes:
                    self.trial(0, {key: value})
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    def variant(self, name: str) -> Recipe:
        """The recipe of a variant that is trained: a plain one, which begins with the base and keeps what averages of it need.

        Raises UserError when it would not be a good recipe.
        """
        finetune = self.finetune
        assert finetune is not None
        variant = finetune.variants[name]
        content = merged(self._alone(), {"data": variant.data, "training": variant.training})
        start = {"model": finetune.base, "transform": finetune.transform}
        content["training"] |= {"run": storage.join(finetune.directory, name), "start": start}
        recipe = parse_recipe(content | {"name": f"{self.name}: {name}"}, f"finetune.variants.{name}")
        kept = {"best": recipe.training.keep_best, "last": recipe.training.keep_last}
        for average in finetune.averages_of(name):
            kept[average.take] = max(kept[average.take], average.members)
        training = recipe.training.model_copy(update={f"keep_{which}": count for which, count in kept.items()})
        return recipe.model_copy(update={"training": training})

    def trial(self, number: int, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a sweep's trial with these values by dotted key: a plain one. Raises UserError when it is not a good one."""
        assert self.sweep is not None
        content, run = self._alone(), storage.join(self.sweep.directory, "trials", f"{number:04d}")
        for key, value in [*values.items(), ("training.run", run)]:
            # a copy, which another key may reach into
            assign(content, key, deepcopy(value), "sweep.space")
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        return parse_recipe(content | {"name": f"{self.name}: trial {number}"}, f"sweep.space with {said}")

    def _alone(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_dict().items() if key not in _MADE_OF_IT}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and json hold them; without what it does not have of variants, sweeps and ensembles."""
        values = self.model_dump(mode="json")
        return {key: value for key, value in values.items() if value is not None or key not in _MADE_OF_IT}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def parse_recipe(content: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Check plain values as a recipe. Raises UserError that begins with ``name``."""
    return validate(Recipe, content, name)
