"""``bench train-step``: what a training step spends its time on, and how it compares.

Of a recipe it tells the time of each phase of a step on the recipe's own prepared data, and compares the step with the network alone and
with the device's matrix product. Without a recipe, it trains the base network in the original's batches on a GPU, a small one on a CPU, and
compares the step with the original's too, Ray Train with the same loop without Ray, and, on a CPU with several cores, threads that divide
the rows of a step with threads that divide its operators, idle and beside one busy process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Settings, interleave
from leapray.bench.data import COLUMNS, make_recipe
from leapray.bench.machine import cores, one_busy_process
from leapray.bench.steps import WARM_STEPS, FewSteps, Work, bare, network_here, original, ours, product, steady
from leapray.cluster import nodes, session
from leapray.data.prepare import prepare
from leapray.data.shards import open_prepared
from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.models.cost import cost_of
from leapray.models.registry import SOLVED
from leapray.recipe import CpuThreading, Recipe
from leapray.training.loop import Record
from leapray.training.memory import keep_freed_memory
from leapray.training.phases import PHASES, PhaseTimer
from leapray.training.trainer import train

BARE, LOOP, IDLE, BUSY = Bar(0.95), Bar(0.95), Bar(0.95), Bar(8)
ORIGINAL, PRODUCT, WAIT = Bar(1.5), Bar(0.5), Bar(0.02, at_most=True)
"""These hold on a GPU."""
_SECONDS, _QUICK_SECONDS = 2.0, 0.2
_STEPS, _QUICK_STEPS = 200, 24
"""Of a training under Ray, whose first half does not count: Ray's own processes are still starting then."""
_MOST_ROUNDS = 3
_BUSY_SHARE = 4
"""Beside a busy process a round has this part of the steps: operators that are divided take about ten times as long there."""
_compare = partial(Comparison.of, "train-step")


def run(settings: Settings, recipe: Recipe | None = None) -> list[Comparison]:
    """The comparisons. Raises UserError for a recipe whose data is not prepared, that has no steps, or wants a GPU where none is."""
    keep_freed_memory()
    seconds = _QUICK_SECONDS if settings.quick else _SECONDS
    if recipe is not None:
        return compare_recipe(recipe, settings, seconds)
    # one core is left to Ray's own processes, which beside a GPU run on the CPU
    with _torch_threads(max(cores() - 1, 1)):
        recipe = synthetic_recipe(settings)
        with session.connected():
            prepared = prepare(recipe)
        work = Work.of(recipe, Stream.of(recipe, prepared)).lasting(seconds)
        found = [*compare_step(work, settings, {"original": original}), *compare_ray(work, settings)]
    return [*found, *compare_threads(work, settings)]


def synthetic_recipe(settings: Settings) -> Recipe:
    """A training with one worker of Ray over new synthetic rows, by the original's optimizer and loss."""
    gpu = torch.cuda.is_available()
    batch = 4000 if gpu else 64 if settings.quick else 256
    rows = max(settings.size(batch * _STEPS, batch * _QUICK_STEPS), COLUMNS)
    optimizer = {"name": "adamw", "options": {"lr": 6.5e-4, "weight_decay": 2e-3}}
    training = {"batch_size": batch, "precision": "bf16" if gpu else "float32", "optimizer": optimizer}
    network = network_here(torch.device("cuda" if gpu else "cpu")).model_dump()
    return make_recipe(settings.directory, rows, network, training, resources={"workers": 1, "use_gpu": gpu})


def compare_recipe(recipe: Recipe, settings: Settings, seconds: float) -> list[Comparison]:
    """The step of one worker of a recipe, with its share of the CPUs of this machine."""
    if recipe.network.name in SOLVED:
        raise UserError(f"network {recipe.network.name} is solved for, not trained in steps")
    gpu, data = recipe.resources.use_gpu, recipe.data
    if gpu and not torch.cuda.is_available():
        raise UserError("resources.use_gpu asks for a GPU, and this machine has none; give --set resources.use_gpu=false")
    with ExitStack() as stack:
        if data.stream_from == "flat":
            stack.enter_context(session.connected())
            stack.enter_context(nodes.data_nodes(recipe.resources.data_nodes))
        if not gpu:
            stack.enter_context(_torch_threads(max(cores() // recipe.resources.processes, 1)))
        stream = Stream.of(recipe, open_prepared(data), 0, recipe.resources.processes)
        return compare_step(Work.of(recipe, stream).lasting(seconds), settings)


def compare_step(work: Work, settings: Settings, more: Mapping[str, Callable[[Work], Figures]] | None = None) -> list[Comparison]:
    """The step against its baselines, and its phases."""
    contestants = {"ours": ours, "bare": bare, "product": product, **(more or {})}
    found = interleave({name: partial(contestant, work) for name, contestant in contestants.items()}, settings)
    rates = found["ours"]["rows/s"]
    flop = cost_of(work.build(), work.held[0]["inputs"].shape[1]).training_flop
    done, possible = [rate * flop / 1e12 for rate in rates], [rate / 1e12 for rate in found["product"]["FLOP/s"]]
    others = [_compare("step, original's step", "rows/s", rates, found["original"]["rows/s"], _on_gpu(work, ORIGINAL))] if more else []
    return [
        *others,
        _compare("step, network alone", "rows/s", rates, found["bare"]["rows/s"], BARE),
        *([_compare("step, matrix product", "TFLOP/s", done, possible, _on_gpu(work, PRODUCT))] if flop else []),
        *phases(work),
    ]


def phases(work: Work) -> list[Comparison]:
    """Milliseconds of each phase of a step where nothing runs beside anything else, of the whole step so; on the recipe's own batches.

    Of threads that divide the rows, these are the phases of the first; that it waits for the others is ``rest``.
    """
    timer = PhaseTimer(work.device, WARM_STEPS)
    work.loop(FewSteps(work.batches, WARM_STEPS + work.steps + 1), timer).fit()
    parts = {name: timer.seconds.get(name, 0.0) for name in PHASES}
    parts["rest"] = timer.whole - sum(parts.values())
    scale = 1000 / timer.steps
    return [_compare(f"{name}, of a step", "ms", [scale * part], [scale * timer.whole]) for name, part in parts.items()]


def compare_ray(work: Work, settings: Settings) -> list[Comparison]:
    """``train`` with one worker against the loop over the same batches in memory, once both are running."""
    few = replace(settings, rounds=min(settings.rounds, _MOST_ROUNDS))
    found = interleave({"ray": partial(_under_ray, work.recipe), "loop": partial(_alone, work)}, few)
    ray, loop = found["ray"], found["loop"]
    step_ms = [1000 * work.rows / rate for rate in ray["rows/s"]]
    wait_ms = [share * ms for share, ms in zip(ray["wait"], step_ms, strict=True)]
    return [
        _compare("Ray Train, loop without Ray", "rows/s", ray["rows/s"], loop["rows/s"], LOOP),
        _compare("data wait, of a step in Ray Train", "ms", wait_ms, step_ms, _on_gpu(work, WAIT)),
    ]


def _under_ray(recipe: Recipe) -> Figures:
    records: list[Record] = []
    storage.remove(recipe.training.run)
    train(recipe, records.append, threads=torch.get_num_threads())
    if not (figures := _later_half(records)):
        raise UserError("bench train-step: the training under Ray ended before its speed could be measured; give it more --rows")
    return figures


def _alone(work: Work) -> Figures:
    records: list[Record] = []
    held = list(work.batches.train(0))
    work.loop(FewSteps(work.batches, len(held), held)).fit(records.append)
    return _later_half(records)


def _later_half(records: list[Record]) -> Figures:
    return steady(records, max(record["steps"] for record in records) // 2)


def compare_threads(work: Work, settings: Settings) -> list[Comparison]:
    """Steps whose rows are divided among all cores, beside ordinary ones; nothing on a GPU and on one core.

    Idle, the best ordinary step is the faster of those with all threads and with one.
    """
    if work.device.type != "cpu" or cores() < 2:
        return []

    def contestant(threading: CpuThreading, threads: int, busy: bool) -> Figures:
        resources = work.recipe.resources.model_copy(update={"cpu_threading": threading})
        steps = max(work.steps // _BUSY_SHARE, 3) if busy else work.steps
        with _torch_threads(threads), one_busy_process() if busy else nullcontext():
            return ours(replace(work, recipe=work.recipe.model_copy(update={"resources": resources}), steps=steps))

    ways: list[tuple[str, CpuThreading, int]] = [("rows", "rows", cores()), ("operators", "operators", cores()), ("one", "operators", 1)]
    every = {(name, busy): partial(contestant, how, threads, busy) for busy in (False, True) for name, how, threads in ways}
    found = interleave({f"{name} {busy}": work for (name, busy), work in every.items()}, settings)
    idle, busy = ({name: found[f"{name} {state}"]["rows/s"] for name, _, _ in ways} for state in (False, True))
    best = [max(pair) for pair in zip(idle["operators"], idle["one"], strict=True)]
    return [
        _compare("idle, best ordinary step", "rows/s", idle["rows"], best, IDLE),
        _compare("busy process, operators in threads", "rows/s", busy["rows"], busy["operators"], BUSY),
        _compare("busy process, one thread", "rows/s", busy["rows"], busy["one"]),
    ]


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _on_gpu(work: Work, bar: Bar) -> Bar | None:
    return bar if work.device.type == "cuda" else None
