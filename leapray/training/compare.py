"""Runs side by side: where their recipes differ, what they cost, and how well they do on the same months."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from leapray import storage
from leapray.climsim.schema import Targets
from leapray.cluster import nodes, session
from leapray.console import digits, say, table
from leapray.data.features import channels_of
from leapray.data.shards import Prepared, open_prepared
from leapray.errors import UserError
from leapray.evaluation.intervals import Difference, Interval, TimedMoments, difference, interval
from leapray.evaluation.metrics import Score
from leapray.faults import placed
from leapray.models.directory import INFO_FILE, ModelInfo, load_info
from leapray.models.registry import build_network
from leapray.recipe import Recipe, Resources, load_recipe, parse_recipe
from leapray.settings import flatten
from leapray.training.choices import with_defaults
from leapray.training.comparison import Entry, score_all
from leapray.training.loop import Record, ranked
from leapray.training.run import Run

_PLACES = {"name", "training.run", "data.prepared"}
"""Keys in which runs differ that are alike."""
_ALONE = {"data", "network", "training", "resources"}


@dataclass(frozen=True)
class Side:
    """One run, as the table has it: what it is made by, what it cost, and what it reaches."""

    name: str
    recipe: Recipe
    parameters: int
    epochs: int
    seconds: float
    """Of training and validation."""
    validation: Record
    """The best of its validations, which the model's weights are of."""
    test: Score | None = None
    interval: Interval | None = None
    difference: Difference | None = None
    """From the first run, on the same rows of the same days."""
    cause: str = ""
    """Why it is not tested."""

    @property
    def groups(self) -> dict[str, float]:
        """Skill by group of variables: on the test months, else as validated, if that is known."""
        if self.test is not None:
            return self.test.targets.by_group(self.test.skill_by_column)
        by_variable = self.validation.get("skill_by_variable")
        if by_variable is None:
            return {}
        targets = Targets.of(by_variable)
        skill = np.full(targets.width, np.nan)
        for name, value in by_variable.items():
            skill[targets[name]] = value
        return targets.by_group(skill)


@dataclass(frozen=True)
class Compared:
    """Runs side by side, the first of them what the others are measured against."""

    sides: list[Side]
    differing: dict[str, list[Any]]
    """Keys of the recipes that are not alike, and their values in each."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {"differing": self.differing, "runs": [_plain(side) for side in self.sides]}


def compare(runs: Sequence[str], progress: Callable[[int, int], None] | None = None) -> Compared:
    """Put runs, or model directories, side by side.

    They are scored on the test months of the first one's prepared data, if that can be read and they were scaled as it is; ``progress``
    is called with the runs that are, and all of them. Raises UserError for fewer than two, one that stands twice, and one that has no
    model yet.
    """
    urls = [storage.absolute(run) for run in runs]
    if len(set(urls)) < max(len(urls), 2):
        raise UserError(f"compare takes two runs or more, each once, and got {', '.join(runs) or 'none'}")
    models = [_model(url) for url in urls]
    infos = [load_info(model) for model in models]
    recipes = [_recipe(url, info) for url, info in zip(urls, infos, strict=True)]
    names = storage.short_names(urls)
    sides = [_side(*parts) for parts in zip(names, recipes, infos, strict=True)]
    return Compared(_tested(sides, models, progress), _differing(recipes))


def _model(url: str) -> str:
    model = url if storage.exists(storage.join(url, INFO_FILE)) else Run(url).model
    if not storage.exists(storage.join(model, INFO_FILE)):
        raise UserError(f"{placed(url)}: neither a finished run nor a model directory ({INFO_FILE} is missing)")
    return model


def _recipe(url: str, info: ModelInfo) -> Recipe:
    run = Run(url)
    found = load_recipe(run.recipe) if storage.exists(run.recipe) else parse_recipe(info.recipe, f"{url}: recipe")
    return with_defaults(found)


def _side(name: str, recipe: Recipe, info: ModelInfo) -> Side:
    if not info.history:
        raise UserError(f"{name}: its model has no history of validations to compare")
    with torch.device("meta"):
        network = build_network(recipe.network.name, recipe.network.options, channels_of(recipe.data))
    return Side(
        name=name,
        recipe=recipe,
        parameters=sum(tensor.numel() for tensor in network.parameters()),
        epochs=info.history[-1].get("epoch", 0),
        seconds=sum(record.get("seconds", 0.0) + record.get("val_seconds", 0.0) for record in info.history),
        validation=ranked(info.history)[0],
    )


def _differing(recipes: Sequence[Recipe]) -> dict[str, list[Any]]:
    plain = [{key: value for key, value in recipe.to_dict().items() if key in _ALONE} for recipe in recipes]
    flat = [flatten(values) for values in plain]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key not in _PLACES]
    found = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _tested(sides: Sequence[Side], models: Sequence[str], progress: Callable[[int, int], None] | None) -> list[Side]:
    """The runs with their scores on the test months of the first one's data."""
    try:
        prepared = open_prepared(sides[0].recipe.data)
    except UserError as error:
        return [replace(side, cause=f"not tested: {error}") for side in sides]
    if not prepared.split("test"):
        return [replace(side, cause=f"not tested: {prepared.url} has no test months") for side in sides]
    entries = [Entry(side.name, "finished", model) for side, model in zip(sides, models, strict=True)]
    with session.connected():
        found = score_all([(entry, "test") for entry in entries], prepared, _resources(sides), progress=progress)
    return [_score(side, moments, found[0], prepared) for side, moments in zip(sides, found, strict=True)]


def _resources(sides: Sequence[Side]) -> Resources:
    """One GPU for each task where the first run had one and there still is one."""
    resources = sides[0].recipe.resources
    return resources if resources.use_gpu and (nodes.gpus() or nodes.autoscaled()) else Resources()


def _score(side: Side, moments: TimedMoments | str | None, first: TimedMoments | str | None, prepared: Prepared) -> Side:
    if not isinstance(moments, TimedMoments):
        return replace(side, cause=moments or f"not tested: it was scaled otherwise than {prepared.url}")
    paired = difference(first, moments) if isinstance(first, TimedMoments) and first is not moments else None
    return replace(side, test=moments.score(), interval=interval(moments), difference=paired)


def _plain(side: Side) -> dict[str, Any]:
    tested = (
        {}
        if side.test is None
        else {
            "test": side.test.summary()
            | {"rows": side.test.rows, "skill_by_variable": side.test.skill_by_variable(), "r2_by_variable": side.test.by_variable()}
        }
    )
    paired = {name: asdict(value) for name in ("interval", "difference") if (value := getattr(side, name)) is not None}
    known = {name: getattr(side, name) for name in ("name", "parameters", "epochs", "seconds", "groups", "cause")}
    validated = {f"validation_{name}": side.validation.get(name) for name in ("skill", "r2")}
    return known | validated | tested | paired


def show(compared: Compared) -> None:
    """Both tables in the terminal, a column for each run: what they reach, and where their recipes differ."""
    sides = compared.sides
    header = ("", *(side.name for side in sides))
    figures = {name: [said(side) for side in sides] for name, said in _FIGURES.items()}
    figures |= {
        group: [digits(side.groups.get(group)) for side in sides]
        for group in dict.fromkeys(group for side in sides for group in side.groups)
    }
    table(
        "Skill and R2 over the learned columns, and skill by group", header, [(name, *said) for name, said in figures.items() if any(said)]
    )
    if compared.differing:
        rows = [(key, *("-" if value is None else str(value) for value in values)) for key, values in compared.differing.items()]
        table("where the recipes differ", header, rows)
    else:
        say("the recipes are alike")
    for cause in dict.fromkeys(side.cause for side in sides if side.cause):
        say(cause)


def _ends(ends: Interval | Difference | None, sign: str = "") -> str:
    return "" if ends is None else f"{digits(ends.low, sign)}, {digits(ends.high, sign)}"


_FIGURES: dict[str, Callable[[Side], str]] = {
    "parameters": lambda side: f"{side.parameters:,}",
    "epochs": lambda side: str(side.epochs),
    "seconds": lambda side: f"{side.seconds:.0f}",
    "validation skill": lambda side: digits(side.validation.get("skill")),
    "test skill": lambda side: digits(side.test.skill if side.test else None),
    "95 % interval": lambda side: _ends(side.interval),
    "less the first": lambda side: digits(side.difference.value if side.difference else None, "+"),
    "95 % interval of that": lambda side: _ends(side.difference, "+"),
    "attainable skill": lambda side: digits(side.test.attainable if side.test else None),
    "test R2": lambda side: digits(side.test.learned if side.test else None),
    "R2, columns that vary": lambda side: digits(side.test.r2_varying if side.test else None),
    "R2, median": lambda side: digits(side.test.r2_median if side.test else None),
    "columns with R2 below 0": lambda side: str(side.test.below_zero) if side.test else "",
}
