"""Verbs that take the whole road, look at recipes, and measure."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated

import typer

from leapray.cli.app import Overrides, RecipeFile, app, notice, recipe_app, under_way
from leapray.console import bar, say


@app.command("run")
def run_all(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Experiment file, such as jobs/recipes/fifth_place.yaml")],
    overrides: Overrides = [],  # noqa: B006
    stage: Annotated[str | None, typer.Option(help="Run this stage alone, such as 'train features'; one that is none lists them")] = None,
    apart: Annotated[bool, typer.Option("--apart", help="Each stage in a process of its own: a job of its own on a cluster")] = False,
) -> None:
    """Go the whole road of an experiment: train, finetune, ensemble, submit, evaluate, export; finished stages are kept."""
    from leapray.recipe.experiment import load_experiment

    loaded, recipes = load_experiment(experiment, overrides)
    from leapray.experiment import run_experiment

    # stages apart say it themselves
    with nullcontext() if apart else under_way(loaded, *recipes.values()):
        done = run_experiment(loaded, recipes, stage, notice, partial(_stage_apart, experiment, overrides) if apart else None)
    say(f"wrote {loaded.directory}: {len(done.ran)} of {len(done.ran) + len(done.kept)} stages done now, the others were finished")


def _stage_apart(experiment: str, overrides: list[str], stage: str) -> None:
    """Run one stage by this command in another process, which ends with its status if it is not 0."""
    sets = [word for override in overrides for word in ("--set", override)]
    ended = subprocess.run([sys.executable, sys.argv[0], "run", experiment, "--stage", stage, *sets], check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Where everything is written")] = Path("leapray-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Less data and fewer epochs")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the trainings")] = 0,
) -> None:
    """The whole road on synthetic data: train, finetune, ensemble, submit, report, export."""
    from leapray.demo import run

    run(directory, quick=quick, seed=seed)


@recipe_app.command()
def check(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Check a recipe and every choice in it."""
    from leapray.data.fitting import Fitting
    from leapray.recipe import load_recipe
    from leapray.training.choices import check_choices

    loaded = load_recipe(recipe, overrides)
    Fitting(loaded.data.variable_set, loaded.data.scaling, loaded.data.features)
    check_choices(loaded)
    say(f"{recipe}: good")


@recipe_app.command()
def show(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Print a recipe with its defaults and overrides filled in."""
    from leapray.recipe import load_recipe
    from leapray.training.choices import with_defaults

    say(with_defaults(load_recipe(recipe, overrides)).to_yaml().rstrip())


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="convert, statistics, ingest, train-step or predict")],
    recipe: Annotated[str | None, typer.Argument(help="With train-step: take the step of this recipe apart, on its prepared data")] = None,
    overrides: Overrides = [],  # noqa: B006
    json: Annotated[str | None, typer.Option(help="Also write the comparisons to this file")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the data that is made; each bench has its own default")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which ours and the baselines take turns")] = 5,
    directory: Annotated[Path | None, typer.Option("--dir", help="Where the data lies meanwhile; default: the temporary directory")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only check that it runs: one round over little data")] = False,
) -> None:
    """Measure a stage beside its baseline, or the training step of a recipe, on this machine."""
    from leapray.bench.benches import run_bench
    from leapray.bench.compare import Settings
    from leapray.bench.compare import show as show_comparisons
    from leapray.recipe import load_recipe

    loaded = load_recipe(recipe, overrides) if recipe else None
    with bar(f"bench {name}") as update:
        settings = Settings(directory or Path(gettempdir()), rows, rounds, quick, update)
        found = run_bench(name, settings, loaded, json)
    show_comparisons(found, judged=not quick)
    if json is not None:
        say(f"wrote {len(found)} comparisons to {json}")
