"""The command line: one verb per stage, no logic. Each verb imports what it needs, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leapray import __version__
from leapray.console import bar, errors, say, training_bar, trainings_table
from leapray.errors import UserError

if TYPE_CHECKING:
    from leapray.recipe import Recipe

app = typer.Typer(
    name="leapray", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train emulators of ClimSim on Ray."
)
recipe_app = typer.Typer(no_args_is_help=True, help="Look at a recipe without running it.")
app.add_typer(recipe_app, name="recipe")

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, such as jobs/recipes/low_res_aqua.yaml")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override section.key of the recipe; may be repeated")]


def main() -> None:
    """Run the command line: status 0 on success, 2 on a user's mistake (one sentence), 1 on anything else."""
    try:
        app()
    except UserError as error:
        errors.print(f"error: {error}", soft_wrap=True, markup=False)
        sys.exit(2)
    except SystemExit as exited:
        if exited.code == 130:
            errors.print("interrupted; the same command goes on where it can")
        raise


def _version(asked: bool) -> None:
    if asked:
        say(f"leapray {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")] = False) -> None:
    pass


@app.command()
def synthesize(
    dest: Annotated[str, typer.Argument(help="Directory for the month folders")],
    kind: Annotated[str, typer.Option(help="low-res, aqua-planet or high-res")],
    steps: Annotated[int, typer.Option(help="Pairs of files to write")],
    columns: Annotated[int | None, typer.Option(help="Columns of the grid; default: the kind's own")] = None,
    start: Annotated[str, typer.Option(help="Month to begin with")] = "0001-02",
    stride: Annotated[int, typer.Option(help="Write every stride-th step of 20 minutes")] = 1,
    seed: Annotated[int, typer.Option(help="Weather; the climate is the same for every seed")] = 0,
    container: Annotated[str, typer.Option("--format", help="cdf5 or hdf5")] = "cdf5",
    ceiling: Annotated[str | None, typer.Option(help="Also write each target's attainable R2 to this json file")] = None,
) -> None:
    """Write a synthetic ClimSim: netCDF pairs in the official layout, from an idealised column physics."""
    from leapray import storage
    from leapray.climsim.schema import TARGETS
    from leapray.climsim.synthetic import World, chosen_steps
    from leapray.climsim.synthetic import synthesize as run

    with bar("synthesize") as update:
        written = run(dest, kind, steps=steps, columns=columns, start=start, stride=stride, seed=seed, container=container, progress=update)
    if ceiling:
        attainable = World(kind, columns, seed).ceiling(chosen_steps(start, steps, stride))
        storage.write_json(ceiling, dict(zip(TARGETS.columns, attainable.tolist(), strict=True)))
        say(f"wrote the attainable R2 of these steps to {ceiling}")
    say(f"wrote {written} pairs of {kind} to {dest}")


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="Source: hf://, s3://, gs://, http(s):// directory, kaggle://, or local")],
    dest: Annotated[str, typer.Argument(help="Directory or URL to copy to")],
    start: Annotated[str | None, typer.Option(help="First month")] = None,
    stop: Annotated[str | None, typer.Option(help="Month to stop before")] = None,
    stride: Annotated[int, typer.Option(help="Take the pairs with step % stride == phase")] = 1,
    phase: Annotated[int, typer.Option(help="Remainder of the steps to take, 0 to stride - 1")] = 0,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Most MB/s, of all copies together")] = None,
    parallel: Annotated[int, typer.Option(help="Copies at a time")] = 4,
) -> None:
    """Copy chosen months of a source; again, what is missing."""
    from leapray.climsim.calendar import Month
    from leapray.data.fetch import fetch as run
    from leapray.data.fetch import in_words
    from leapray.data.flat import Selection
    from leapray.data.origin import Throttle

    first, last = (Month.parse(month) if month else None for month in (start, stop))
    selection, throttle = Selection(first, last, stride, phase), Throttle(rate * 1e6 if rate else None)
    with bar("fetch") as update:
        done = run(url, dest, selection, parallel=parallel, throttle=throttle, progress=update)
    there = f"; {done.present_files} ({in_words(done.present_bytes)}) were there already" if done.present_files else ""
    say(f"copied {done.files} files ({in_words(done.bytes)}) to {dest}{there}")


@app.command("check")
def check_source(
    src: Annotated[str, typer.Argument(help="Directory, URL or file: netCDF pairs, flat parquet or csv")],
    kind: Annotated[str | None, typer.Option(help="low-res, aqua-planet or high-res; told from the files by default")] = None,
) -> None:
    """Look at the first pair or file: columns, known ranges, units and identities."""
    from leapray.data.check import check as run
    from leapray.data.check import require_good

    findings = run(src, kind)
    for finding in findings:
        say(f"{finding.verdict.value:<6} {finding.text}")
    require_good(src, findings)


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="Directory or URL of netCDF pairs")],
    dest: Annotated[str, typer.Argument(help="Directory or URL for flat parquet")],
    stride: Annotated[int, typer.Option(help="Take the steps with step % stride == phase")] = 1,
    phase: Annotated[int, typer.Option(help="Remainder of the steps to take, 0 to stride - 1")] = 0,
    start: Annotated[str | None, typer.Option(help="First month")] = None,
    stop: Annotated[str | None, typer.Option(help="Month to stop before")] = None,
    kind: Annotated[str | None, typer.Option(help="low-res, aqua-planet or high-res; told from the files by default")] = None,
) -> None:
    """Convert netCDF pairs to flat parquet."""
    from leapray.climsim.calendar import Month
    from leapray.data.convert import convert as run

    months = {"start": Month.parse(start) if start else None, "stop": Month.parse(stop) if stop else None}
    with bar("convert") as update:
        done = run(src, dest, stride=stride, phase=phase, kind=kind, progress=update, **months)
    say(f"wrote {done.rows} rows of {done.kind} in {done.files} files to {dest}")


@app.command()
def prepare(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Fit the transform and write shuffled shards."""
    from leapray.data.prepare import prepare as run
    from leapray.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    with bar("prepare") as update:
        prepared = run(loaded, progress=lambda name, done, total: update(done, total, name), notice=_notice)
    for manifest in prepared.manifests:
        for line in manifest.report():
            say(line)
    say(f"wrote transform and {'shards' if loaded.data.stream_from == 'shards' else 'manifests'} to {prepared.url}")


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Train a network, or go on with its run."""
    loaded = _trainable(recipe, overrides)
    from leapray.training.trainer import train as run

    with training_bar("train") as follow:
        trained = run(loaded, progress=follow)
    best, last = trained.best, trained.history[-1]
    at = f"epoch {best['epoch']} of {last['epoch']}, step {best['step']} of {last['step']}"
    say(f"wrote {trained.model_url}: validation R2 {best['r2']:.4f} over the learned columns at {at}")


@app.command()
def finetune(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Train variants of a base model in parallel, or go on with them, and compare them with it."""
    loaded = _trainable(recipe, overrides)
    from leapray.training.comparison import show as show_variants
    from leapray.training.finetune import finetune as run

    with trainings_table("finetune", list(loaded.finetune.variants) if loaded.finetune else []) as shown:
        done = run(loaded, shown, notice=_notice)
    show_variants(done.entries)
    say(f"wrote {done.url}: {len(done.entries) - 1 - len(done.failed)} variants of {done.base}, {len(done.failed)} failed")


@app.command()
def sweep(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Train trials drawn from a search space in parallel, or go on with them, and write the best one's recipe."""
    loaded = _trainable(recipe, overrides)
    from leapray.training.sweep import show as show_trials
    from leapray.training.sweep import sweep as run

    with trainings_table("sweep", []) as shown:
        done = run(loaded, shown, notice=_notice)
    show_trials(done)
    counted = f"{done.count('stopped')} stopped early, {done.count('failed')} failed"
    say(f"wrote {done.url}: {done.best.name} of {len(done.trials)}, validation R2 {done.best.r2:.4f}; {counted}")


@app.command()
def predict(
    paths: Annotated[list[str], typer.Argument(metavar="MODEL... INPUT DEST", help="Model directories, flat parquet or csv, destination")],
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU per actor")] = False,
) -> None:
    """Predict physical tendencies; several models are averaged before the physics."""
    from leapray.inference.predict import predict as run

    if len(paths) < 3:
        raise UserError(f"predict takes MODEL... INPUT DEST, at least three paths, and got {len(paths)}")
    *models, source, dest = paths
    with bar("predict") as update:
        done = run(models, source, dest, use_gpu=gpu, progress=update, notice=_notice)
    say(f"wrote predictions of {done.rows} rows to {done.url}")


@app.command()
def submit(
    predictions: Annotated[str, typer.Argument(help="Directory that predict wrote")],
    dest: Annotated[str, typer.Argument(help="Submission, .csv or .parquet")],
    sample_submission: Annotated[str, typer.Option(help="The competition's sample: ids, order of columns, weights")],
) -> None:
    """Write a submission in the order and with the weights of a sample submission."""
    from leapray.inference.submission import write_submission

    rows = write_submission(predictions, sample_submission, dest)
    say(f"wrote {rows} rows to {dest}")


@app.command()
def evaluate(
    predictions: Annotated[str, typer.Argument(help="Predictions or a submission")],
    truth: Annotated[str, typer.Argument(help="Flat parquet or csv with targets")],
    dest: Annotated[str, typer.Argument(help="Directory for scores.json")],
    sample_submission: Annotated[
        str | None, typer.Option(help="Set when predictions are a submission: its weights multiply the truth")
    ] = None,
) -> None:
    """Score predictions by the competition's R2."""
    from leapray import storage
    from leapray.climsim.schema import TARGETS
    from leapray.evaluation.score import score_files

    score = score_files(predictions, truth, sample_submission)
    columns = dict(zip(TARGETS.columns, score.r2.tolist(), strict=True))
    storage.write_json(
        storage.join(dest, "scores.json"),
        {"rows": score.rows, **score.summary(), "by_variable": score.by_variable(), "by_column": columns},
    )
    for name, value in score.by_variable().items():
        say(f"{name:<16} {value:10.4g}")
    say(f"R2 over the learned columns {score.learned:.4g}, over the scored {score.scored:.4g}, over all {score.all:.4g}")
    say(f"wrote the scores of {score.rows} rows to {storage.join(dest, 'scores.json')}")


@recipe_app.command()
def check(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Check a recipe and every choice in it."""
    from leapray.data.transform import Fitting
    from leapray.recipe import load_recipe
    from leapray.training.choices import check_choices

    loaded = load_recipe(recipe, overrides)
    Fitting(loaded.data.scaling, loaded.data.features)
    check_choices(loaded)
    say(f"{recipe}: good")


@recipe_app.command()
def show(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Print a recipe with its defaults and overrides filled in."""
    from leapray.recipe import load_recipe
    from leapray.training.choices import with_defaults

    say(with_defaults(load_recipe(recipe, overrides)).to_yaml().rstrip())


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Where everything is written")] = Path("leapray-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Less data and fewer epochs")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the trainings")] = 0,
) -> None:
    """The whole road on synthetic data: synthesize, convert, prepare, train, predict, submit, score."""
    from leapray.demo import run

    run(directory, quick=quick, seed=seed)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="convert, statistics, ingest or train-step")],
    json: Annotated[str | None, typer.Option(help="Also write the comparisons to this file")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the data that is made; each bench has its own default")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which ours and the baselines take turns")] = 5,
    directory: Annotated[Path | None, typer.Option("--dir", help="Where the data lies meanwhile; default: the temporary directory")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that it runs: one round over little data")] = False,
) -> None:
    """Measure a stage beside its baseline, on this machine."""
    from leapray.bench.benches import run_bench
    from leapray.bench.compare import show as show_comparisons

    with bar(f"bench {name}") as update:
        found = run_bench(name, json=json, rows=rows, rounds=rounds, quick=quick, directory=directory, progress=update)
    show_comparisons(found, judged=not quick)
    if json is not None:
        say(f"wrote {len(found)} comparisons to {json}")


def _notice(sentence: str) -> None:
    errors.print(f"note: {sentence}", soft_wrap=True, markup=False)


def _trainable(recipe: str, overrides: list[str]) -> Recipe:
    """A recipe that this machine can hold, as far as can be told before torch and Ray, which take seconds, are imported."""
    from leapray.capacity import require
    from leapray.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    require(loaded)
    return loaded
