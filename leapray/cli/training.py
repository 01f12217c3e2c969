"""Verbs that train, and that compare what was trained."""

from __future__ import annotations

from typing import Annotated

import typer

from leapray.cli.app import Overrides, RecipeFile, app, notice, trainable, under_way
from leapray.console import bar, digits, say, training_bar, trainings_table
from leapray.errors import UserError


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Train a network, or go on with its run."""
    loaded = trainable(recipe, overrides)
    from leapray.training.trainer import train as run

    with under_way(loaded), training_bar("train") as follow:
        trained = run(loaded, progress=follow, notice=notice)
    best, last = trained.best, trained.history[-1]
    at = f"epoch {best['epoch']} of {last['epoch']}, step {best['step']} of {last['step']}"
    chosen = f"R2 {digits(best['r2'])}, " if loaded.training.select == "r2" else ""
    skill = f"validation {chosen}skill {digits(best['skill'])} of an attainable {digits(best['attainable'])}"
    # what is solved for has one validation
    say(f"wrote {trained.model_url}: {skill}" + (f" at {at}" if last["steps"] > 1 else ""))


@app.command()
def finetune(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Train variants of a base model in parallel, or go on with them, and compare them with it."""
    loaded = trainable(recipe, overrides)
    from leapray.training.comparison import show as show_variants
    from leapray.training.finetune import finetune as run

    names = list(loaded.finetune.variants) if loaded.finetune else []
    with under_way(loaded), trainings_table("finetune", names) as shown:
        done = run(loaded, shown, notice=notice)
    show_variants(done.entries, loaded.training.select)
    say(f"wrote {done.url}: {len(done.entries) - 1 - len(done.failed)} variants of {done.base}, {len(done.failed)} failed")


@app.command()
def sweep(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Train trials drawn from a search space in parallel, or go on with them, and write the best one's recipe."""
    loaded = trainable(recipe, overrides)
    from leapray.training.sweep import show as show_trials
    from leapray.training.sweep import sweep as run

    with under_way(loaded), trainings_table("sweep", []) as shown:
        done = run(loaded, shown, notice=notice)
    show_trials(done)
    chosen = f"R2 {digits(done.best.r2)}, " if loaded.training.select == "r2" else ""
    counted = f"{done.count('stopped')} stopped early, {done.count('failed')} failed"
    say(f"wrote {done.url}: {done.best.name} of {len(done.trials)}, validation {chosen}skill {digits(done.best.skill)}; {counted}")


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run or model directories; with --report, what evaluate wrote")],
    json: Annotated[str | None, typer.Option(help="Also write the figures of runs to this file")] = None,
    report: Annotated[str | None, typer.Option(help="Put two directories that evaluate wrote side by side in a report in this one")] = None,
) -> None:
    """Put runs side by side: their recipes where they differ, cost, skill and R2 with intervals on the same months; or two evaluations."""
    if report is not None:
        if json is not None:
            raise UserError("--report puts evaluations side by side, and --json writes the figures of runs; give one of them")
        from leapray.evaluation.report import compare_reports

        say(f"wrote {compare_reports(report, runs)}")
        return
    from leapray import storage
    from leapray.training.compare import compare as run
    from leapray.training.compare import show as show_compared

    with bar("compare") as update:
        compared = run(runs, update)
    show_compared(compared)
    if json is not None:
        storage.write_json(json, compared.to_dict())
        say(f"wrote the figures of {len(compared.sides)} runs to {json}")
