"""The verb that says what a training would take."""

from __future__ import annotations

from typing import Annotated

import typer

from leapray.cli.app import Overrides, RecipeFile, app, notice
from leapray.console import say, table


@app.command()
def plan(
    recipe: RecipeFile,
    gpus: Annotated[int, typer.Option(help="GPUs to train on, one worker each; 0: CPU workers")],
    workers: Annotated[int | None, typer.Option(help="CPU workers, with --gpus 0; default: the recipe's")] = None,
    rate: Annotated[float | None, typer.Option(help="Rows/s that one worker trains")] = None,
    tflops: Annotated[float | None, typer.Option(help="TFLOP/s that one worker attains in training, instead of --rate")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the rate on this machine instead")] = False,
    json: Annotated[str | None, typer.Option(help="Also write the plan to this file")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Print rows, steps, operations and memory of a training, and its time and bandwidth at a given or measured rate."""
    from leapray import storage
    from leapray.plan import make_plan, planned_recipe

    loaded = planned_recipe(recipe, overrides, gpus, workers)
    made = make_plan(loaded, rate=rate, tflops=tflops, measure_seconds=5.0 if measure else None, notice=notice)
    table("", (made.recipe, ""), made.rows())
    for note in made.notes:
        say(note)
    if json is not None:
        storage.write_json(json, made.to_dict())
        say(f"wrote the plan to {json}")
