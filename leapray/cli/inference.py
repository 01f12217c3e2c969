"""Verbs that make something of trained models."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from leapray.cli.app import Overrides, Phase, RecipeFile, Start, Stop, Stride, app, in_words, notice, selected, under_way
from leapray.console import bar, digits, say, table
from leapray.errors import UserError

Kind = Annotated[str | None, typer.Option(help="low-res, aqua-planet or high-res, of rows without a column kind")]


class BadRows(StrEnum):
    """What becomes of rows that hold NaN or Inf."""

    REFUSE = "refuse"
    DROP = "drop"


Bad = Annotated[BadRows, typer.Option("--bad-rows", help="What becomes of rows that hold NaN or Inf: all is refused, or they are left out")]


@app.command()
def predict(
    paths: Annotated[list[str], typer.Argument(metavar="MODEL... INPUT DEST", help="Model directories, flat parquet or csv, destination")],
    weights: Annotated[str | None, typer.Option(help="ensemble.json; without MODEL its own models predict")] = None,
    members: Annotated[bool, typer.Option("--members", help="Also keep each model's own output, before the physics")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Predict on GPUs")] = False,
    gpu_share: Annotated[
        float | None, typer.Option(help="GPU of each model's actor; default: as much as lets the models fill a GPU together")
    ] = None,
    apart: Annotated[
        bool | None, typer.Option("--apart/--together", help="Each model an actor of its own, or all in one; default: apart on GPUs")
    ] = None,
    start: Start = None,
    stop: Stop = None,
    stride: Stride = 1,
    phase: Phase = 0,
    kind: Kind = None,
    bad_rows: Bad = BadRows.REFUSE,
) -> None:
    """Predict physical tendencies; several models are averaged before the physics."""
    from leapray.inference.predict import predict as run
    from leapray.inference.weights import weighted_models
    from leapray.models.directory import load_info

    if len(paths) < (least := 2 if weights else 3):
        raise UserError(f"predict takes MODEL... INPUT DEST, at least {least} paths, and got {len(paths)}")
    *models, source, dest = paths
    if gpu_share is not None and not gpu:
        raise UserError(f"--gpu-share {gpu_share:g} is of GPUs, expected --gpu beside it")
    selection, kind = selected(start, stop, stride, phase), _known(kind)
    chosen, matrix, names = weighted_models(weights, models) if weights else (models, None, None)
    with under_way(networks=[load_info(model).network.name for model in chosen]), bar("predict") as update:
        done = run(
            chosen,
            source,
            dest,
            weights=matrix,
            members=members,
            names=names,
            use_gpu=gpu,
            gpu_share=gpu_share,
            apart=apart,
            selection=selection,
            kind=kind,
            bad_rows=bad_rows.value,
            progress=update,
            notice=notice,
        )
    say(f"wrote predictions of {done.rows} rows by {len(chosen)} model{'s' * (len(chosen) > 1)} to {done.url}")


@app.command()
def ensemble(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Solve for the weights of several models on the blend months, and predict the test months with them."""
    from leapray.inference.ensemble import ensemble as run
    from leapray.inference.ensemble import show as show_ensemble
    from leapray.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    with under_way(loaded), bar("ensemble") as update:
        done = run(loaded, progress=update, notice=notice)
    show_ensemble(done.weights)
    applied = f", predictions of the test months to {done.predictions}" if done.predictions else ""
    say(f"wrote the weights of {len(done.weights.members)} members to {done.url}{applied}")


@app.command()
def submit(
    predictions: Annotated[str, typer.Argument(help="Directory that predict wrote")],
    dest: Annotated[str, typer.Argument(help="Submission, .csv or .parquet")],
    sample_submission: Annotated[str, typer.Option(help="The competition's sample: ids, order of columns, weights")],
    truth: Annotated[str | None, typer.Option(help="Flat parquet or csv with the targets of these ids, to score by")] = None,
) -> None:
    """Write a submission in the order and with the weights of a sample submission, and score it where the truth is known."""
    from leapray.inference.submission import submit as run

    rows, score = run(predictions, sample_submission, dest, truth, notice)
    for line in in_words(score) if score else ():
        say(line)
    say(f"wrote {rows} rows to {dest}")


@app.command()
def evaluate(
    predictions: Annotated[str, typer.Argument(help="Predictions or a submission")],
    truth: Annotated[str, typer.Argument(help="Flat parquet or csv with targets")],
    dest: Annotated[str, typer.Argument(help="Directory for scores.json and report.html")],
    beside: Annotated[
        list[str], typer.Option(metavar="NAME=PREDICTIONS", help="Other predictions of the same rows, to stand beside; may be repeated")
    ] = [],  # noqa: B006
    members: Annotated[
        bool | None, typer.Option("--members/--no-members", help="Also evaluate each model's own output; default: where there is one")
    ] = None,
    grid: Annotated[str | None, typer.Option(help="netCDF with lat, lon and area of the columns, which high-res needs")] = None,
    sample_submission: Annotated[str | None, typer.Option(help="Set when predictions are a submission: the weights of its values")] = None,
    start: Start = None,
    stop: Stop = None,
    stride: Stride = 1,
    phase: Phase = 0,
    kind: Kind = None,
    bad_rows: Bad = BadRows.REFUSE,
    run: Annotated[list[str], typer.Option(help="Run whose learning curve the report shows; may be repeated")] = [],  # noqa: B006
    variants: Annotated[list[str], typer.Option(help="variants.json for the report; may be repeated")] = [],  # noqa: B006
    ensemble: Annotated[str | None, typer.Option(help="ensemble.json for the report")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html beside the numbers")] = True,
    draw: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Predictions beside these that the plots show; may be repeated; default: the best other model, ridge, climatology, linear",
        ),
    ] = [],  # noqa: B006
) -> None:
    """Evaluate predictions: skill, the competition's R2, ClimSim's own metrics, and a report."""
    from leapray import storage
    from leapray.inference.evaluate import evaluate as judge

    with bar("evaluate") as update:
        found = judge(
            predictions,
            truth,
            dest,
            selection=selected(start, stop, stride, phase),
            kind=_known(kind),
            bad_rows=bad_rows.value,
            beside=_named(beside),
            members=members,
            grid=grid,
            sample_submission=sample_submission,
            runs=dict(zip(storage.short_names(run), run, strict=True)),
            variants=variants,
            ensemble=ensemble,
            report=report,
            draw=draw or None,
            progress=update,
            notice=notice,
        )
    score = found[0].moments.score()
    r2 = score.by_variable()
    attainable = score.attainable_by_variable()
    rows: list[tuple[str, ...]] = [
        (name, digits(value), digits(attainable[name]), digits(r2[name])) for name, value in score.skill_by_variable().items()
    ]
    table("Skill and R2 by variable, over its learned columns", ("", "skill", "attainable", "R2"), rows)
    for sentence in found[0].lacking:
        notice(sentence)
    for line in in_words(score):
        say(line)
    say(f"wrote the scores of {score.rows} rows{' and a report' if report else ''} to {dest}")


@app.command()
def export(
    paths: Annotated[list[str], typer.Argument(metavar="MODEL... DEST", help="Model directories, destination directory")],
    form: Annotated[str, typer.Option("--format", help="torchscript or torch-export")],
    layout: Annotated[str, typer.Option(help="Order of the inputs that the host passes: kaggle556 or v2_rh557")] = "kaggle556",
    weights: Annotated[str | None, typer.Option(help="ensemble.json; without MODEL its own models are exported")] = None,
) -> None:
    """Write models as one emulator that a climate model can call: raw inputs in, physical tendencies out."""
    from leapray.inference.export import export as run

    if len(paths) < (least := 1 if weights else 2):
        raise UserError(f"export takes MODEL... DEST, at least {least} path{'s' * (least > 1)}, and got {len(paths)}")
    *models, dest = paths
    done = run(models, dest, form, layout=layout, weights=weights, notice=notice)
    say(f"wrote {' and '.join(done.files)} to {done.url}, members: {done.members}; read back, self-test of {done.rows} rows passed")


def _known(kind: str | None) -> str | None:
    from leapray.climsim.row_keys import KINDS

    if kind is not None and kind not in KINDS:
        raise UserError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    return kind


def _named(pairs: list[str]) -> dict[str, str]:
    """Values NAME=VALUE of an option, by name."""
    named = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not (name and given and value) or name in named:
            raise UserError(f"{pair}: expected NAME=PREDICTIONS, each name once")
        named[name] = value
    return named
