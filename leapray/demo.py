"""The whole road on synthetic data: months of low-res and aqua-planet become trained emulators, an ensemble, and what is made of it.

Every stage is the one that its verb runs, and every file that is left can be given to that verb.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from leapray import storage
from leapray.climsim.calendar import month_range
from leapray.climsim.pairs import find_pairs
from leapray.climsim.schema import KAGGLE, SAMPLE_ID
from leapray.climsim.synthetic import World, synthesize
from leapray.cluster import session
from leapray.console import bar, digits, say, table
from leapray.data.convert import convert
from leapray.errors import UserError
from leapray.evaluation.metrics import Score
from leapray.evaluation.results import read_evaluations
from leapray.evaluation.tables import read_ids
from leapray.experiment import run_experiment
from leapray.recipe import SPLITS, Recipe
from leapray.recipe.experiment import Experiment, load_experiment
from leapray.settings import claim

EXPERIMENT = Path(__file__).resolve().parent.parent / "jobs" / "recipes" / "demo_experiment.yaml"
_HOME = "leapray-demo"
"""Directory that the experiment's paths begin with, the verb's default."""
_CEILING = "ceiling"


@dataclass(frozen=True)
class Size:
    """How much the demo makes: every stride-th step of each kind, and what it changes in the experiment."""

    low_res_stride: int
    aqua_planet_stride: int
    overrides: tuple[str, ...]


FULL = Size(low_res_stride=509, aqua_planet_stride=877, overrides=())
QUICK = Size(low_res_stride=997, aqua_planet_stride=1601, overrides=("change.training.epochs=3",))


def run(directory: Path, *, quick: bool = False, seed: int = 0) -> dict[str, Score]:
    """Run the demo in ``directory`` and return the held-out scores by name; what an earlier run finished there is kept.

    Raises UserError when the directory holds a demo of other settings, or leapray was installed without its recipes.
    """
    started = time.monotonic()
    size = QUICK if quick else FULL
    experiment, recipes = _load(directory, size, seed)
    claim(str(directory), "demo.json", {**asdict(size), "overrides": list(size.overrides), "seed": seed}, "a demo", ".nc")
    say("leapray demo: from synthetic ClimSim files to an ensemble, its submission, report and exported emulator")
    recipe = next(iter(recipes.values()))
    with session.connected():
        _make_data(directory, recipe, size)
        assert experiment.submission is not None
        _write_sample(experiment.submission.input, experiment.submission.sample_submission)
        run_experiment(experiment, recipes)
    scores = _scores(experiment, recipe)
    _show(scores)
    storage.write_json(
        str(directory / "scores.json"),
        {
            name: {**s.summary(), "skill_by_variable": s.skill_by_variable(), "r2_by_variable": s.by_variable()}
            for name, s in scores.items()
        },
    )
    for what, place in (("submission", "submission.csv"), ("emulators", "export"), ("report", "report/report.html")):
        say(f"{what:<11} {directory / place}")
    say(f"wrote the demo to {directory} in {time.monotonic() - started:.0f} s")
    return scores


def _load(directory: Path, size: Size, seed: int) -> tuple[Experiment, dict[str, Recipe]]:
    """The experiment with its places moved into the directory."""
    if not EXPERIMENT.exists():
        raise UserError(f"{EXPERIMENT}: the demo's recipes are missing; install leapray from a checkout with `pip install -e .`")
    experiment, recipes = load_experiment(str(EXPERIMENT))
    data, asked = next(iter(recipes.values())).data, experiment.submission
    assert asked is not None
    places = {"directory": _HOME, "change.data.prepared": data.prepared}
    places |= {f"change.data.sources.{name}.path": source.path for name, source in data.sources.items()}
    places |= {f"submission.{key}": place for key, place in asked.model_dump(exclude_none=True).items()}
    moved = [f"{key}={json.dumps(str(directory / Path(place).relative_to(_HOME)))}" for key, place in places.items()]
    return load_experiment(str(EXPERIMENT), [*size.overrides, f"change.training.seed={seed}", *moved])


def _make_data(directory: Path, recipe: Recipe, size: Size) -> None:
    """Pairs of both kinds over the recipe's months, and their flat parquet, the test months apart."""
    for kind, stride in (("low-res", size.low_res_stride), ("aqua-planet", size.aqua_planet_stride)):
        sources = {name: source for name, source in recipe.data.sources.items() if source.kind == kind}
        spans = {source.path: [m for split in SPLITS if (m := source.months(split))] for source in sources.values()}
        start = min(months.start for span in spans.values() for months in span)
        stop = max(months.stop for span in spans.values() for months in span)
        pairs = str(directory / "climsim" / kind)
        steps = len(range(start.first_step + -start.first_step % stride, stop.first_step, stride))
        if len(storage.list_files(pairs, ".nc")) != 2 * steps:
            with bar(f"synthesize {kind}") as update:
                synthesize(pairs, kind, steps=steps, start=str(start), stride=stride, progress=update)
        rows = 0
        with bar(f"convert {kind}") as update:
            for path, span in spans.items():
                first, last = min(months.start for months in span), max(months.stop for months in span)
                rows += convert(pairs, path, start=first, stop=last, kind=kind, progress=update).rows
        say(f"{kind}: {steps} steps of {len(month_range(start, stop))} months in {pairs}, {rows} flat rows")


def _write_sample(test: str, destination: str) -> None:
    """The competition's new kind of sample submission for the test rows: weight 1 on the scored columns, 0 on the others."""
    ids = read_ids(test)
    weights = {name: pa.repeat(int(scored), len(ids)) for name, scored in zip(KAGGLE.targets.columns, KAGGLE.targets.scored, strict=True)}
    with storage.atomic_file(destination) as file:
        pyarrow.csv.write_csv(pa.table({SAMPLE_ID: ids, **weights}), file)


def _scores(experiment: Experiment, recipe: Recipe) -> dict[str, Score]:
    """What the report found, the best last, and what the data allows."""
    found = {evaluation.name: evaluation.moments for evaluation in read_evaluations(experiment.place("report"))}
    scores = dict(sorted(((name, moments.score()) for name, moments in found.items()), key=lambda item: item[1].skill))
    kind, months = next((source.kind, source.test) for source in recipe.data.sources.values() if source.test is not None)
    steps = [pair.step for pair in find_pairs(experiment.place("climsim", kind), start=months.start, stop=months.stop)]
    # the truth is that of all of them
    truth = next(iter(found.values()))
    total = truth.total()
    unexplained = np.where(truth.targets.scored, 1 - World(kind).ceiling(steps), 0.0)
    return scores | {_CEILING: replace(total, error=unexplained * total.deviation).score(truth.statistics)}


def _show(scores: Mapping[str, Score]) -> None:
    rows = []
    for name, score in scores.items():
        groups = score.targets.by_group(score.skill_by_column)
        rows.append((name, *map(digits, (score.skill, score.r2_median, score.all, *groups.values()))))
    # the longest name would crop the others in a terminal of 80 columns
    names = ["T" if group == "temperature" else group for group in groups]
    attainable = next(iter(scores.values())).attainable
    title = f"Held-out months: skill, of an attainable {digits(attainable)}, median and mean R2, and skill by group"
    table(title, ("", "skill", "median R2", "R2", *names), rows)
