"""``bench train-step``: our training step against the original's, against the network alone and against the device; and under Ray Train.

On a GPU it trains the base network in the original's batches, on a CPU a small one, in float32 on either side.
On a CPU with several cores, threads that divide a step's rows are measured beside threads that divide its operators, on an idle machine
and beside one busy process (:mod:`leapray.bench.cpu_threads`).
The step is the loop that every training runs, over batches in memory. Under Ray Train it is the verb itself with one worker, over shards
that were prepared for it, beside the same loop over the same batches without Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Progress, Settings, interleave
from leapray.bench.cpu_threads import compare_threads
from leapray.bench.data import COLUMNS, KIND, make_flat
from leapray.bench.steps import (
    Bare,
    InMemory,
    MatrixProduct,
    Original,
    Ours,
    Setup,
    forward_flop,
    phases,
    random_batches,
    setup_here,
    steady,
)
from leapray.cluster import session
from leapray.data.prepare import prepare
from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.recipe import Recipe, parse_recipe
from leapray.training.feed import Batch
from leapray.training.loop import Loop, Record
from leapray.training.memory import keep_freed_memory
from leapray.training.trainer import train

BARE, LOOP = Bar(0.95), Bar(0.95)
ORIGINAL, PRODUCT, WAIT = Bar(1.5), Bar(0.5), Bar(0.02, at_most=True)
"""These hold on a GPU."""
_SECONDS, _QUICK_SECONDS, _LEAST_STEPS = 30.0, 3.0, 24
"""Of a training under Ray, whose first half does not count: Ray's own processes are still starting then."""
_MOST_ROUNDS = 3


def run(settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """Rows a second of the step, the parts of it, the share of the device's arithmetic, and what Ray Train costs."""
    if os.environ.get("RAY_ADDRESS"):
        raise UserError("bench train-step measures this machine alone; unset RAY_ADDRESS")
    keep_freed_memory()
    with _one_core_left():
        setup = setup_here(settings.quick)
        found = [*compare_steps(setup, settings, progress), *compare_ray(setup, settings, progress)]
    return [*found, *compare_threads(setup, settings, progress)]


@contextmanager
def _one_core_left() -> Iterator[None]:
    """Every contestant computes on all cores but one, on which Ray's own processes run, as beside a GPU they run on the CPU."""
    own = torch.get_num_threads()
    torch.set_num_threads(_threads())
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _threads() -> int:
    return max((os.cpu_count() or 1) - 1, 1)


def compare_steps(setup: Setup, settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """The step against its baselines, and its phases."""
    held = random_batches(setup.batch_size)
    found = interleave(
        {"ours": Ours(setup, held), "original": Original(setup, held), "bare": Bare(setup), "product": MatrixProduct(setup)},
        settings,
        progress,
    )
    ours = found["ours"]["rows/s"]
    flop = 3 * forward_flop(setup.build())
    achieved, attainable = [rate * flop / 1e12 for rate in ours], [rate / 1e12 for rate in found["product"]["FLOP/s"]]
    parts = phases(setup, held)
    whole_ms = sum(parts.values())
    return [
        _compare("step, original's step", "rows/s", ours, found["original"]["rows/s"], _on_gpu(setup, ORIGINAL)),
        _compare("step, network alone", "rows/s", ours, found["bare"]["rows/s"], BARE),
        _compare("step, matrix product", "TFLOP/s", achieved, attainable, _on_gpu(setup, PRODUCT)),
        *(_compare(f"{phase}, of a step", "ms", [ms], [whole_ms], None) for phase, ms in parts.items()),
    ]


def compare_ray(setup: Setup, settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """The verb with one worker against the loop over the same batches in memory, once both are running."""
    usual, quick = (setup.batch_size * max(_LEAST_STEPS, setup.steps_in(seconds)) for seconds in (_SECONDS, _QUICK_SECONDS))
    recipe = _recipe(settings.directory, settings.size(usual, quick), setup)
    with session.connected():
        prepared = prepare(recipe)
        held = list(Stream(prepared, batch_size=setup.batch_size, lanes=recipe.lanes, seed=recipe.training.seed).train(0))
    few = replace(settings, rounds=min(settings.rounds, _MOST_ROUNDS))
    found = interleave({"ray": partial(_under_ray, recipe), "loop": partial(_alone, recipe, setup, held)}, few, progress)
    ray, loop = found["ray"], found["loop"]
    step_ms = [1000 * setup.batch_size / rate for rate in ray["rows/s"]]
    wait_ms = [share * ms for share, ms in zip(ray["wait"], step_ms, strict=True)]
    return [
        _compare("Ray Train, loop without Ray", "rows/s", ray["rows/s"], loop["rows/s"], LOOP),
        _compare("data wait, of a step in Ray Train", "ms", wait_ms, step_ms, _on_gpu(setup, WAIT)),
    ]


def _recipe(directory: Path, rows: int, setup: Setup) -> Recipe:
    """The training of ``setup`` by a worker of Ray Train, over new flat files of ``rows`` rows and a snapshot to validate on."""
    flat = make_flat(directory / "training", rows)
    held_out = make_flat(directory / "held-out", COLUMNS, start=flat.stop)
    train_on = {"kind": KIND, "path": flat.url, "train": {"start": str(flat.start), "stop": str(flat.stop)}}
    validate_on = {"kind": KIND, "path": held_out.url, "validation": {"start": str(held_out.start), "stop": str(held_out.stop)}}
    return parse_recipe(
        {
            "name": "bench",
            "data": {"prepared": str(directory / "prepared"), "sources": {"train": train_on, "held_out": validate_on}},
            "network": setup.network.model_dump(),
            "training": setup.training.model_dump() | {"run": str(directory / "run")},
            "resources": {"workers": 1, "use_gpu": setup.device.type == "cuda"},
        }
    )


def _under_ray(recipe: Recipe) -> Figures:
    """The verb, from the records of its run."""
    records: list[Record] = []
    storage.remove(recipe.training.run)
    train(recipe, records.append, threads=_threads())
    figures = _later_half(records)
    if not figures:
        raise UserError("bench train-step: the training under Ray ended before its speed could be seen; give it more --rows")
    return figures


def _alone(recipe: Recipe, setup: Setup, held: Sequence[Batch]) -> Figures:
    """The same loop in this process."""
    records: list[Record] = []
    Loop(setup.build(), InMemory(held, len(held)), recipe.training, setup.device).fit(records.append)
    return _later_half(records)


def _later_half(records: Sequence[Record]) -> Figures:
    return steady([record for record in records if record["step"] > record["steps"] // 2])


def _compare(case: str, unit: str, ours: Sequence[float], baseline: Sequence[float], bar: Bar | None) -> Comparison:
    return Comparison.of("train-step", case, unit, ours, baseline, bar)


def _on_gpu(setup: Setup, bar: Bar) -> Bar | None:
    return bar if setup.device.type == "cuda" else None
