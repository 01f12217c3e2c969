"""The whole road on synthetic data: months of low-res and aqua-planet become trained emulators, and their mean a scored submission.

Every stage is the one that its verb runs, and every file that is left can be given to that verb.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch

from leapray import cluster, storage
from leapray.climsim.calendar import Month, month_range
from leapray.climsim.netcdf import find_pairs
from leapray.climsim.schema import SAMPLE_ID, SCORED, TARGETS
from leapray.climsim.synthetic import World, synthesize
from leapray.console import bar, say, table, training_bar, trainings_table
from leapray.data.convert import convert
from leapray.data.flat import list_pieces, read_piece
from leapray.data.prepare import prepare
from leapray.data.reading import read_split
from leapray.data.shards import Prepared
from leapray.errors import UserError
from leapray.evaluation.baselines import Ridge
from leapray.evaluation.metrics import ErrorMoments, Score
from leapray.evaluation.score import score_files
from leapray.evaluation.tables import read_ids
from leapray.inference.predict import predict
from leapray.inference.submission import write_submission
from leapray.models.directory import load_model
from leapray.models.emulator import Emulator
from leapray.models.linear import solved
from leapray.models.registry import build_network
from leapray.recipe import Choice, Recipe, load_recipe
from leapray.settings import claim
from leapray.training.comparison import show as show_variants
from leapray.training.finetune import finetune
from leapray.training.trainer import train

RECIPE = Path(__file__).resolve().parent.parent / "jobs" / "recipes" / "demo.yaml"
_HOME = "leapray-demo"
"""Directory that the recipe's paths begin with, the verb's default."""
_MODEL, _MLP, _ENSEMBLE = "BiLSTM", "MLP", "mean of all"
_RIDGE_ALPHAS = (1.0, 10.0, 100.0, 1000.0)
_MLP_RATE = 2e-3
_GROUPS = {
    "T": ("ptend_t",),
    "vapour": ("ptend_q0001",),
    "cloud": ("ptend_q0002", "ptend_q0003"),
    "wind": ("ptend_u", "ptend_v"),
    "surface": tuple(v.name for v in TARGETS.scalars),
}


@dataclass(frozen=True)
class Size:
    """How much the demo makes: every stride-th step of each kind, and what it changes in the recipe."""

    low_res_stride: int
    aqua_planet_stride: int
    overrides: tuple[str, ...]


FULL = Size(low_res_stride=509, aqua_planet_stride=877, overrides=())
QUICK = Size(low_res_stride=797, aqua_planet_stride=1301, overrides=("training.epochs=3",))


def run(directory: Path, *, quick: bool = False, seed: int = 0) -> dict[str, Score]:
    """Run the demo in ``directory`` and return the held-out scores by name; what an earlier run finished there is kept.

    Raises UserError when the directory holds a demo of other settings, or leapray was installed without its recipes.
    """
    started = time.monotonic()
    size = QUICK if quick else FULL
    recipe = _recipe(directory, size, seed)
    claim(str(directory), "demo.json", {**asdict(size), "overrides": list(size.overrides), "seed": seed}, "a demo", ".nc")
    say("leapray demo: from synthetic ClimSim files to a scored submission")
    with cluster.connected():
        _make_data(directory, recipe, size)
        with bar("prepare") as update:
            prepared = prepare(recipe, progress=lambda name, done, total: update(done, total, name))
        rows = [sum(manifest.rows for manifest in prepared.split(split)) for split in ("train", "validation", "test")]
        say("prepared    {} training, {} validation and {} test rows, apart by month".format(*rows))
        models = {_MLP: _train(_mlp_of_equal_size(recipe, directory)), _MODEL: _train(recipe), **_finetune(recipe)}
        members = [model for name, model in models.items() if name != _MLP]
        test = recipe.data.sources["low_res_test"].path
        with bar("predict") as update:
            predictions = predict(members, test, str(directory / "predictions"), progress=update)
    sample, submission = str(directory / "sample_submission.csv"), str(directory / "submission.csv")
    _write_sample(test, sample)
    write_submission(predictions.url, sample, submission)
    say(f"submitted   {predictions.rows} rows to {submission}")
    emulators = {**_baselines(prepared), **{name: load_model(model).emulator for name, model in models.items()}}
    scores = {name: _score(emulator, test) for name, emulator in emulators.items()}
    scores[_ENSEMBLE] = score_files(submission, test, sample)
    steps = [pair.step for pair in find_pairs(str(directory / "climsim" / "low-res"), start=_test_start(recipe))]
    scores["ceiling"] = Score(np.where(SCORED, World("low-res").ceiling(steps), 1.0), predictions.rows)
    _show(scores)
    storage.write_json(str(directory / "scores.json"), {name: {**s.summary(), **s.by_variable()} for name, s in scores.items()})
    say(f"models {directory / 'runs'}, submission {submission}, scores {directory / 'scores.json'}; {time.monotonic() - started:.0f} s")
    return scores


def _recipe(directory: Path, size: Size, seed: int) -> Recipe:
    if not RECIPE.exists():
        raise UserError(f"{RECIPE}: the demo's recipe is missing; install leapray from a checkout with `pip install -e .`")
    recipe = load_recipe(str(RECIPE), [*size.overrides, f"training.seed={seed}"])
    sources = {
        name: source.model_copy(update={"path": str(directory / Path(source.path).relative_to(_HOME))})
        for name, source in recipe.data.sources.items()
    }
    data = recipe.data.model_copy(update={"prepared": str(directory / "prepared"), "sources": sources})
    training = recipe.training.model_copy(update={"run": str(directory / "runs" / "low-res-aqua")})
    assert recipe.finetune is not None
    places = {key: str(directory / Path(getattr(recipe.finetune, key)).relative_to(_HOME)) for key in ("base", "directory")}
    finetune = recipe.finetune.model_copy(update=places)
    return recipe.model_copy(update={"data": data, "training": training, "finetune": finetune})


def _test_start(recipe: Recipe) -> Month:
    months = recipe.data.sources["low_res_test"].test
    assert months is not None
    return months.start


def _make_data(directory: Path, recipe: Recipe, size: Size) -> None:
    """Pairs of both kinds over the recipe's months, and their flat parquet, the test months apart."""
    for kind, stride in (("low-res", size.low_res_stride), ("aqua-planet", size.aqua_planet_stride)):
        sources = {name: source for name, source in recipe.data.sources.items() if source.kind == kind}
        spans = {
            source.path: [m for split in ("train", "validation", "test") if (m := source.months(split))] for source in sources.values()
        }
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
        say(f"{kind:<11} {steps} steps of {len(month_range(start, stop))} months in {pairs}, {rows} flat rows")


def _train(recipe: Recipe) -> str:
    """Train a recipe and return its model's directory."""
    started = time.monotonic()
    with training_bar(f"train {recipe.network.name}") as follow:
        trained = train(recipe, progress=follow)
    size = sum(tensor.numel() for tensor in build_network(recipe.network.name, recipe.network.options).parameters())
    best = trained.best
    say(
        f"trained     {recipe.network.name}, {size:,} parameters: validation R2 {best['r2']:.3f} at epoch {best['epoch']} "
        f"of {trained.history[-1]['epoch']}, {time.monotonic() - started:.0f} s"
    )
    return trained.model_url


def _finetune(recipe: Recipe) -> dict[str, str]:
    """Let the variants race and return the model of each that finished, by name."""
    assert recipe.finetune is not None
    started = time.monotonic()
    with trainings_table("finetune", list(recipe.finetune.variants)) as shown:
        done = finetune(recipe, shown)
    show_variants(done.entries)
    finished = {entry.name: entry.model for entry in done.entries if entry.state == "finished"}
    say(f"finetuned   {len(finished)} variants of {_MODEL} side by side, {time.monotonic() - started:.0f} s")
    return finished


def _mlp_of_equal_size(recipe: Recipe, directory: Path) -> Recipe:
    """The same recipe with the perceptron of two hidden layers whose size comes nearest to the network's, and a rate that suits it."""

    def size(choice: Choice) -> int:
        with torch.device("meta"):
            return sum(tensor.numel() for tensor in build_network(choice.name, choice.options).parameters())

    target = size(recipe.network)
    choices = [Choice(name="mlp", options={"hidden": [width] * 2, "activation": "silu"}) for width in range(32, 1024, 8)]
    network = min(choices, key=lambda choice: abs(size(choice) - target))
    optimizer = Choice(name="adamw", options={**recipe.training.optimizer.options, "lr": _MLP_RATE})
    training = recipe.training.model_copy(update={"run": str(directory / "runs" / "mlp"), "optimizer": optimizer})
    return recipe.model_copy(update={"network": network, "training": training})


def _write_sample(test: str, destination: str) -> None:
    """The competition's new kind of sample submission for the test rows: weight 1 on the 308 scored columns, 0 on the ablated."""
    ids = read_ids(test)
    weights = {name: pa.repeat(int(scored), len(ids)) for name, scored in zip(TARGETS.columns, SCORED, strict=True)}
    with storage.atomic_file(destination) as file:
        pyarrow.csv.write_csv(pa.table({SAMPLE_ID: ids, **weights}), file)


def _baselines(prepared: Prepared) -> dict[str, Emulator]:
    """Climatology, and ridge regression with the alpha that does best on the validation months."""
    ridge = Ridge()
    for rows in read_split(prepared, "train"):
        ridge.update(rows["inputs"], rows["targets"])
    models = [ridge.solve(alpha) for alpha in _RIDGE_ALPHAS]
    moments = [ErrorMoments() for _ in models]
    for rows in read_split(prepared, "validation"):
        for model, errors in zip(models, moments, strict=True):
            errors.update(rows["targets"], model.predict(rows["inputs"]))
    best = models[int(np.argmax([errors.score().learned for errors in moments]))]
    chosen = {"climatology": ridge.climatology(), "ridge": best}
    return {name: Emulator(prepared.transform, solved(model)) for name, model in chosen.items()}


@torch.inference_mode()
def _score(emulator: Emulator, test: str) -> Score:
    moments = ErrorMoments()
    for piece in list_pieces(test):
        for block in read_piece(piece):
            moments.update(block.targets, emulator(torch.from_numpy(block.inputs)).numpy())
    return moments.score()


def _show(scores: Mapping[str, Score]) -> None:
    rows = []
    for name, score in scores.items():
        variables = score.by_variable()
        groups = [np.mean([variables[variable] for variable in group]) for group in _GROUPS.values()]
        rows.append((name, *(f"{value:.3f}" for value in (score.learned, score.scored, score.all, *groups))))
    title = "R2 on held-out months: mean over columns, and by group"
    table(title, ("", "learned", "scored", "all", *_GROUPS), rows)
