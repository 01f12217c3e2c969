"""Verbs that make and prepare data."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from leapray.cli.app import Overrides, Phase, RecipeFile, Start, Stop, Stride, app, notice, selected, under_way
from leapray.console import bar, say, scaled


class Incomplete(StrEnum):
    """What becomes of steps that lack one of their two files."""

    REFUSE = "refuse"
    SKIP = "skip"


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
    from leapray.climsim.schema import KAGGLE
    from leapray.climsim.synthetic import World, chosen_steps
    from leapray.climsim.synthetic import synthesize as run

    with bar("synthesize") as update:
        written = run(dest, kind, steps=steps, columns=columns, start=start, stride=stride, seed=seed, container=container, progress=update)
    if ceiling:
        attainable = World(kind, columns, seed).ceiling(chosen_steps(start, steps, stride))
        storage.write_json(ceiling, dict(zip(KAGGLE.targets.columns, attainable.tolist(), strict=True)))
        say(f"wrote the attainable R2 of these steps to {ceiling}")
    say(f"wrote {written} pairs of {kind} to {dest}")


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="Source: hf://, s3://, gs://, http(s):// directory, kaggle://, or local")],
    dest: Annotated[str, typer.Argument(help="Directory or URL to copy to")],
    start: Start = None,
    stop: Stop = None,
    stride: Stride = 1,
    phase: Phase = 0,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Most MB/s, of all copies together")] = None,
    parallel: Annotated[int, typer.Option(help="Copies at a time")] = 4,
) -> None:
    """Copy chosen months of a source; again, what is missing."""
    from leapray.data.fetch import fetch as run
    from leapray.data.origin import Throttle

    selection, throttle = selected(start, stop, stride, phase), Throttle(rate * 1e6 if rate else None)
    with bar("fetch") as update:
        done = run(url, dest, selection, parallel=parallel, throttle=throttle, progress=update, notice=notice)
    there = f"; {done.present_files} ({scaled(done.present_bytes)}) were there already" if done.present_files else ""
    say(f"copied {done.files} files ({scaled(done.bytes)}) to {dest}{there}")


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
    stride: Stride = 1,
    phase: Phase = 0,
    start: Start = None,
    stop: Stop = None,
    kind: Annotated[str | None, typer.Option(help="low-res, aqua-planet or high-res; told from the files by default")] = None,
    incomplete: Annotated[Incomplete, typer.Option(help="Steps without both files: refuse to convert, or skip them")] = Incomplete.REFUSE,
    variables: Annotated[str, typer.Option(help="ClimSim's variable set whose columns are written")] = "v2_kaggle",
) -> None:
    """Convert netCDF pairs to flat parquet."""
    from leapray.climsim.calendar import Month
    from leapray.climsim.pairs import incomplete_in_words
    from leapray.climsim.schema import variable_set
    from leapray.data.convert import INCOMPLETE
    from leapray.data.convert import convert as run

    first, last = (Month.parse(month) if month else None for month in (start, stop))
    asked = variable_set(variables)
    with under_way(), bar("convert") as update:
        done = run(
            src,
            dest,
            stride=stride,
            phase=phase,
            kind=kind,
            start=first,
            stop=last,
            skip_incomplete=incomplete is Incomplete.SKIP,
            variables=asked,
            progress=update,
            notice=notice,
        )
    if done.incomplete:
        say(f"{incomplete_in_words(done.incomplete)}; left out, and listed in {dest.rstrip('/')}/{INCOMPLETE}")
    say(f"wrote {done.rows} rows of {done.kind} in {done.files} files to {dest}")


@app.command()
def prepare(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Fit the transform and write shuffled shards."""
    from leapray.data.prepare import prepare as run
    from leapray.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    with under_way(loaded), bar("prepare") as update:
        prepared = run(loaded, progress=lambda name, done, total: update(done, total, name), notice=notice)
    for manifest in prepared.manifests:
        for line in manifest.report():
            say(line)
    say(f"wrote transform and {'shards' if loaded.data.stream_from == 'shards' else 'manifests'} to {prepared.url}")
