"""An experiment: several recipes trained, their models averaged, and what the ensemble is asked for, in one file."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from leapray import storage
from leapray.errors import UserError
from leapray.recipe.ensemble import Listed, Weighing
from leapray.recipe.load import merged, read_recipe, validate
from leapray.recipe.recipe import Recipe, parse_recipe
from leapray.recipe.sections import FOLDER_NAME, Section
from leapray.recipe.variants import BASE


class Part(Section):
    """One recipe of an experiment."""

    recipe: str
    """Its file, relative to the experiment's, or a URL."""
    change: dict[str, Any] = Field(default_factory=dict)
    """What is changed in it, section by section."""
    member: bool = True
    """Whether its models are members of the ensemble; others only stand beside it."""


class Blend(Section):
    """How the members are averaged: a recipe's section ``ensemble`` without what the experiment knows."""

    months_of: str | None = None
    """The recipe whose months choose the weights and test them; by default the first."""
    members: tuple[Listed, ...] = ()
    """Further members, beside the experiment's own."""
    weights: Weighing = Weighing(method="solved")
    groups: Literal["one", "by-variable", "auto"] = "auto"


class Submission(Section):
    """Rows to predict, and the competition's file that is made of them."""

    input: str
    """Flat parquet or csv without targets."""
    sample_submission: str
    file: str | None = None
    """By default ``submission.csv`` in the experiment's directory."""
    truth: str | None = None
    """Flat parquet or csv with targets, by which the submission is scored."""


class Export(Section):
    """The ensemble as one file for online coupling."""

    format: Literal["torchscript", "torch-export"] = "torchscript"
    layout: Literal["kaggle556", "v2_rh557"] = "kaggle556"


class Experiment(Section):
    """The whole road in one file."""

    name: str
    directory: str
    """Where runs, variants, ensemble, submission, report and exported emulator lie."""
    change: dict[str, Any] = Field(default_factory=dict)
    """What is changed in every recipe, section by section, before what each changes itself."""
    recipes: dict[str, Part] = Field(min_length=1)
    baselines: bool = True
    """Whether climatology and ridge regression are fitted: members where weights are solved for, else beside the ensemble."""
    ensemble: Blend = Blend()
    submission: Submission | None = None
    export: Annotated[dict[str, Export], Field()] = Field(default_factory=dict)
    """By name, which becomes a folder."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for name in (*self.recipes, *self.export):
            if not FOLDER_NAME.fullmatch(name) or name == BASE:
                raise ValueError(f"the name {name!r} becomes a folder, expected letters, digits, - and _, and not {BASE!r}")
        for where, change in {
            "change": self.change,
            **{f"recipes.{name}.change": part.change for name, part in self.recipes.items()},
        }.items():
            training = change.get("training")
            if training is not None and not isinstance(training, dict):
                raise ValueError(f"{where}.training is {training!r}: expected a mapping of keys")
            if "run" in (training or {}):
                raise ValueError(f"{where}.training.run is not a recipe's to give; its run lies in the experiment's directory")
        if self.ensemble.months_of is not None and self.ensemble.months_of not in self.recipes:
            raise ValueError(f"ensemble.months_of names {self.ensemble.months_of!r}, expected one of {', '.join(self.recipes)}")
        if not any(part.member for part in self.recipes.values()):
            raise ValueError("no recipe's models are members of the ensemble; expected member: true in one")
        return self

    def place(self, *parts: str) -> str:
        """A place below the experiment's directory."""
        return storage.join(self.directory, *parts)


def load_experiment(url: str, overrides: tuple[str, ...] | list[str] = ()) -> tuple[Experiment, dict[str, Recipe]]:
    """Read an experiment and its recipes, each with its changes; their runs and variants lie in the experiment's directory.

    Raises UserError with one sentence per mistake.
    """
    content = read_recipe(url, overrides)
    if isinstance(content.get("data"), dict) and "recipes" not in content:
        raise UserError(f"{url}: is a recipe, expected an experiment of some; leapray train and the other verbs take it")
    experiment = validate(Experiment, content, url)
    home = url.rpartition("/")[0]
    recipes = {}
    for name, part in experiment.recipes.items():
        file = part.recipe if "://" in part.recipe or part.recipe.startswith("/") or not home else storage.join(home, part.recipe)
        content = merged(merged(read_recipe(file), experiment.change), part.change)
        placed: dict[str, Any] = {"training": {"run": experiment.place("runs", name)}}
        if content.get("finetune"):
            placed["finetune"] = {"base": experiment.place("runs", name, "model"), "directory": experiment.place("variants", name)}
        recipes[name] = parse_recipe(merged(content, placed) | {"name": name}, f"{url}: recipes.{name}")
    for (name, recipe), (other_name, other) in combinations(recipes.items(), 2):
        if recipe.data.prepared == other.data.prepared and recipe.data != other.data:
            raise UserError(
                f"{url}: recipes.{name} and recipes.{other_name} prepare other data in one place, {recipe.data.prepared}; "
                "give one of them another data.prepared"
            )
    return experiment, recipes
