"""The recipe of an experiment: frozen models of one YAML file, loaded strictly, with ``section.key=value`` overrides.

A recipe describes; the rooms build. A choice among implementations is ``{name, options}``: the registry of its room knows the
names and checks the options.
"""

from collections.abc import Sequence

from leapray.errors import UserError
from leapray.recipe.data import SPLITS, Data, Source
from leapray.recipe.ensemble import Ensemble, Predictions
from leapray.recipe.load import read_recipe, validate
from leapray.recipe.recipe import Recipe, parse_recipe
from leapray.recipe.sections import Choice, Months, Section
from leapray.recipe.training import CpuThreading, EqualAverage, MovingAverage, Profile, Resources, Select, Start, Training
from leapray.recipe.variants import BASE, Average, Dimension, Finetune, Sweep, Variant

__all__ = [
    "BASE",
    "SPLITS",
    "Average",
    "Choice",
    "CpuThreading",
    "Data",
    "Dimension",
    "Ensemble",
    "EqualAverage",
    "Finetune",
    "Months",
    "MovingAverage",
    "Predictions",
    "Profile",
    "Recipe",
    "Resources",
    "Section",
    "Select",
    "Source",
    "Start",
    "Sweep",
    "Training",
    "Variant",
    "load_recipe",
    "parse_recipe",
    "validate",
]


def load_recipe(url: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply ``section.key=value`` overrides, and check it. Raises UserError with one sentence per mistake."""
    content = read_recipe(url, overrides)
    if isinstance(content.get("recipes"), dict) and "data" not in content:
        raise UserError(f"{url}: is an experiment of several recipes, expected one of these; the whole of it is what leapray run takes")
    return parse_recipe(content, url)
