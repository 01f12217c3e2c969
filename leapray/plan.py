"""``leapray plan``: rows, steps, operations and memory of a training, and its time and bandwidth at a given or measured rate."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from leapray.cluster.capacity import require
from leapray.console import counted, duration, scaled
from leapray.data.epoch import EpochPlan
from leapray.data.features import channels_of
from leapray.data.fitting import Fitting
from leapray.data.row_bytes import NETCDF_ROW_BYTES, flat_row_bytes, shard_row_bytes
from leapray.data.row_counts import RowCount, count_rows
from leapray.errors import UserError
from leapray.models.cost import PASSES, Cost, cost_of
from leapray.models.registry import SOLVED, build_network
from leapray.recipe import Recipe, load_recipe
from leapray.training.choices import check_choices

KERNEL_SECONDS = 5e-6
"""About what a GPU takes from the start of a kernel to the start of the next one that waits for it."""
_SHARDS_AHEAD = 3
"""Shards that a worker reads before it needs them."""

Figures = dict[str, tuple[float, str]]
"""Values and their units, by name."""


@dataclass(frozen=True)
class Plan:
    """What a training takes: figures, and sentences about where they are from."""

    recipe: str
    figures: Figures
    notes: Sequence[str]

    def rows(self) -> list[tuple[str, ...]]:
        """The figures as people read them, with three significant digits."""
        shown: dict[str, Callable[[float], str]] = {"s": duration, "": counted, "h": counted, "rows/s": counted}
        return [(name, shown[unit](value) if unit in shown else scaled(value, unit)) for name, (value, unit) in self.figures.items()]

    def to_dict(self) -> dict[str, object]:
        figures = {name: {"value": value, "unit": unit} for name, (value, unit) in self.figures.items()}
        return {"recipe": self.recipe, "figures": figures, "notes": list(self.notes)}


def planned_recipe(url: str, overrides: Sequence[str], gpus: int, workers: int | None = None) -> Recipe:
    """The recipe on so many GPUs, or with ``gpus`` 0 on CPU workers, by default the recipe's own.

    Raises UserError for a bad recipe, one that so many workers cannot share, and CPU workers that this machine cannot hold.
    """
    if gpus < 0 or (workers is not None and (gpus or workers < 0)):
        raise UserError("expected --gpus of at least 0, and --workers of at least 0 with --gpus 0 alone")
    resources = ["use_gpu=true", f"workers={gpus}", "gpus_per_worker=1"] if gpus else ["use_gpu=false"]
    resources += [] if workers is None else [f"workers={workers}"]
    recipe = load_recipe(url, [*overrides, *(f"resources.{setting}" for setting in resources)])
    if not gpus:
        require(recipe)
    return recipe


def make_plan(
    recipe: Recipe,
    *,
    rate: float | None = None,
    tflops: float | None = None,
    measure_seconds: float | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The plan of a recipe. Time and bandwidth need ``rate``, the rows a second of one worker, or the ``tflops`` that it attains, or a
    measurement on this machine for about so many seconds. ``notice`` as for :func:`leapray.data.row_counts.count_rows`.

    Raises UserError for what can never run (a wrong choice, no training rows, less than one batch of them), for a rate that is none, and
    for a measurement that this machine cannot make.
    """
    check_choices(recipe)
    if recipe.network.name in SOLVED:
        raise UserError(f"network {recipe.network.name} is solved for in one pass over the training rows; there are no steps to plan")
    Fitting(recipe.data.variable_set, recipe.data.scaling, recipe.data.features)
    counts, channels = count_rows(recipe.data, notice), channels_of(recipe.data)
    cost = cost_of(build_network(recipe.network.name, recipe.network.options, channels).eval(), channels.inputs.width)
    steps = _steps(recipe, counts)
    figures, notes = _sizes(recipe, counts, cost, steps), [f"Rows of {name} are {count.how}." for name, count in counts.items()]
    if not cost.forward_flop:
        notes.append(f"Network {recipe.network.name} has no linear or recurrent layer, so its operations are not counted.")
    found = _rate(recipe, cost, rate, tflops, measure_seconds)
    own, gpu = recipe.training.batch_size / max(recipe.resources.workers, 1), recipe.resources.use_gpu
    if found is None:
        notes.append("Time and bandwidth need a rate: give --rate (rows/s of one worker) or --tflops, or --measure it here.")
    elif gpu and not measure_seconds and own / found[0] < cost.kernels * recipe.training.accumulate * KERNEL_SECONDS:
        notes.append(
            f"The step is launch-bound: a GPU computes its {counted(own)} rows faster than it starts the network's kernels, so no time is "
            "given. Raise training.batch_size, use fewer GPUs, or measure the step with --measure."
        )
    else:
        figures |= _speed(recipe, counts, cost, steps, found[0])
        notes.append(f"One worker trains {counted(found[0])} rows/s ({found[1]}). Times assume that workers never wait.")
    return Plan(recipe.name, figures, notes)


def _steps(recipe: Recipe, counts: Mapping[str, RowCount]) -> int:
    """Steps of an epoch, as a training takes them."""
    names = recipe.trained if recipe.shares is None else list(recipe.shares)
    if not names:
        raise UserError(f"recipe {recipe.name}: no source has training months; give one train: {{start, stop}}")
    rows, batch = [counts[name].rows["train"] for name in names], recipe.training.batch_size
    shares = None if recipe.shares is None else list(recipe.shares.values())
    try:
        steps = EpochPlan(rows, range(len(names)), batch_size=batch, lanes=recipe.lanes, seed=0, epoch=0, shares=shares).steps
    except ValueError as error:
        raise UserError(f"training.batch_size {batch} is too small for these weights: {error}") from error
    if steps == 0:
        raise UserError(f"recipe {recipe.name}: {sum(rows)} training rows do not fill one batch of {batch}")
    return steps


def _validated(counts: Mapping[str, RowCount]) -> int:
    return sum(count.rows.get("validation", 0) for count in counts.values())


def _sizes(recipe: Recipe, counts: Mapping[str, RowCount], cost: Cost, steps: int) -> Figures:
    """What does not depend on the rate."""
    training, workers = recipe.training, max(recipe.resources.workers, 1)
    own, row = training.batch_size / workers, shard_row_bytes(channels_of(recipe.data))
    total = sum(count.total for count in counts.values())
    epoch_flop = steps * training.batch_size * cost.training_flop + training.validations * _validated(counts) * cost.forward_flop
    activations = cost.activation_bytes * own / training.accumulate * (1 if training.precision == "float32" else 0.5)
    held = recipe.lanes // workers * len(recipe.shares or [""]) + _SHARDS_AHEAD
    return {f"rows: {name}, {split}": (rows, "") for name, count in counts.items() for split, rows in count.rows.items()} | {
        "all rows: netCDF": (total * NETCDF_ROW_BYTES, "B"),
        "all rows: flat parquet at most": (total * flat_row_bytes(recipe.data.variable_set), "B"),
        "all rows: shards": (total * row, "B"),
        "workers": (workers, ""),
        "rows of a step": (training.batch_size, ""),
        "steps of an epoch": (steps, ""),
        "epochs at most": (training.epochs, ""),
        "parameters": (cost.parameters, ""),
        "operations: a training row": (cost.training_flop, "FLOP"),
        "operations: all epochs": (training.epochs * epoch_flop, "FLOP"),
        "memory: weights, gradients, AdamW": (cost.state_bytes(averaged=bool(training.ema or training.swa)), "B"),
        "memory: activations, about": (activations, "B"),
        "memory: shards in a worker": (held * recipe.data.rows_per_shard * row, "B"),
    }


def _rate(recipe: Recipe, cost: Cost, rate: float | None, tflops: float | None, seconds: float | None) -> tuple[float, str] | None:
    """Rows a second of one worker, and where they are from."""
    for name, value in (("--rate", rate), ("--tflops", tflops)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} {value:g}: expected a number above 0")
    if sum(value is not None for value in (rate, tflops, seconds)) > 1:
        raise UserError("--rate, --tflops and --measure all tell how fast a worker is; give one of them")
    if rate is not None:
        return rate, "--rate"
    if tflops is not None:
        if not cost.forward_flop:
            raise UserError(f"network {recipe.network.name}: its operations are not counted, so --tflops says nothing; give --rate")
        return tflops * 1e12 / cost.training_flop, f"--tflops {tflops:g}"
    if seconds is None:
        return None
    # it imports Ray
    from leapray.training.speed import training_rate

    gpu, workers, cores = recipe.resources.use_gpu, max(recipe.resources.workers, 1), os.cpu_count() or 1
    threads = max(cores // workers, 1)
    found, how = training_rate(recipe, recipe.training.batch_size // workers, threads, seconds)
    # CPU workers that are more than the cores take turns
    return found / (1.0 if gpu else max(workers / cores, 1.0)), f"measured on {how}"


def _speed(recipe: Recipe, counts: Mapping[str, RowCount], cost: Cost, steps: int, rate: float) -> Figures:
    """Time and bandwidth at the rate of one worker."""
    training, workers, shards = recipe.training, max(recipe.resources.workers, 1), recipe.data.stream_from == "shards"
    together = workers * rate
    step = training.batch_size / together
    # validation is the forward pass alone
    epoch = steps * step + training.validations * _validated(counts) / (PASSES * together)
    row = shard_row_bytes(channels_of(recipe.data)) if shards else flat_row_bytes(recipe.data.variable_set)
    # a ring sends every gradient twice, less one worker's share (Patarasuk and Yuan 2009)
    sent = 2 * (workers - 1) / workers * cost.gradient_bytes
    return {
        "rows/s": (together, "rows/s"),
        "time: a step": (step, "s"),
        "time: an epoch": (epoch, "s"),
        "time: all epochs": (training.epochs * epoch, "s"),
        f"{'GPU' if recipe.resources.use_gpu else 'worker'}-hours": (workers * training.epochs * epoch / 3600, "h"),
        "bandwidth: storage": (together * row, "B/s"),
        "bandwidth: gradients from each worker": (sent / step, "B/s"),
    }
