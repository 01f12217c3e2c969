"""The application that the verbs belong to, and what several of them take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from leapray.console import digits, say, terminal
from leapray.faults import told

if TYPE_CHECKING:
    from leapray.data.flat import Selection
    from leapray.evaluation.metrics import Score
    from leapray.recipe import Recipe
    from leapray.recipe.experiment import Experiment

app = typer.Typer(
    name="leapray", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train emulators of ClimSim on Ray."
)
recipe_app = typer.Typer(no_args_is_help=True, help="Look at a recipe without running it.")
app.add_typer(recipe_app, name="recipe")

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, such as jobs/recipes/low_res_aqua.yaml")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override section.key of the recipe; may be repeated")]
Start = Annotated[str | None, typer.Option(help="First month")]
Stop = Annotated[str | None, typer.Option(help="Month to stop before")]
Stride = Annotated[int, typer.Option(help="Take the steps with step % stride == phase")]
Phase = Annotated[int, typer.Option(help="Remainder of the steps to take, 0 to stride - 1")]


def notice(sentence: str) -> None:
    """Tell what is worth knowing and stops nothing."""
    # on a terminal through that which draws the bar or the table, and so above it
    shown = terminal.console if terminal.console.is_terminal and terminal.errors.is_terminal else terminal.errors
    shown.print(f"note: {told(sentence, 4000)}", soft_wrap=True, markup=False)


def selected(start: str | None, stop: str | None, stride: int, phase: int) -> Selection:
    """The rows that the four options of a selection take."""
    from leapray.climsim.calendar import Month
    from leapray.data.flat import Selection

    first, last = (Month.parse(month) if month else None for month in (start, stop))
    return Selection(first, last, stride, phase)


def trainable(recipe: str, overrides: list[str]) -> Recipe:
    """A recipe that this machine can hold, as far as can be told before torch and Ray, which take seconds, are imported."""
    from leapray.cluster.capacity import require
    from leapray.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    require(loaded)
    return loaded


@contextmanager
def under_way(recipe: Recipe | Experiment | None = None, *others: Recipe, networks: Iterable[str] = ()) -> Iterator[None]:
    """Say in one line what begins, and where; a cluster that RAY_ADDRESS names is joined for the length of the block.

    ``others`` are an experiment's recipes, which its digest counts in. What users' own ``networks`` lie in goes to the cluster.
    """
    from leapray import provenance

    named = [*networks, *(one.network.name for one in (recipe, *others) if one is not None and hasattr(one, "network"))]
    what = f"{type(recipe).__name__.lower()} {recipe.name} {provenance.digest(recipe, *others)}" if recipe else ""
    with provenance.place(_modules(named)) as where:
        say(provenance.line(where, what))
        yield


def _modules(networks: list[str]) -> list[str]:
    if not any(":" in name for name in networks):
        return []
    from leapray.models.registry import users_modules

    return users_modules(*networks)


def in_words(score: Score) -> list[str]:
    """Skill, then R2, each in a line, and a line on the columns that decide R2 where they hardly vary."""
    from leapray.evaluation.summary import deciding_columns

    lines = [
        f"skill {digits(score.skill)} of an attainable {digits(score.attainable)}, against {score.statistics.origin}",
        f"R2 over all columns {digits(score.all)}, the scored {digits(score.scored)}, the learned {digits(score.learned)}; over those "
        f"that vary {digits(score.r2_varying)}, median {digits(score.r2_median)}; {score.below_zero} columns below 0",
    ]
    if sentence := deciding_columns(score):
        lines.append(sentence.replace("R²", "R2"))
    return lines
