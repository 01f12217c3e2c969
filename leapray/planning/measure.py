"""Rates measured on this machine: the training step of a recipe's own network, and the reading of its prepared rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, cycle, islice
from math import ceil

import numpy as np
import torch

from leapray.climsim.schema import INPUTS, KAGGLE, LEVELS, TARGETS
from leapray.data.reading import read_file
from leapray.data.shards import Prepared
from leapray.data.stream import Stream
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.models.registry import build_network
from leapray.planning.rates import Rate
from leapray.planning.request import Request
from leapray.recipe import Choice, Recipe
from leapray.training.feed import Batch
from leapray.training.loop import Loop, Record
from leapray.training.memory import keep_freed_memory

_WARM_RECORDS = 2
"""Records of a loop before its speed counts: in them it is still finding its way."""
_WARM_STEPS = {"cpu": 5, "cuda": 64}
"""The steps of these records."""
_FIRST_ROWS, _GROWTH, _LEAST_STEPS = 16, 4, 4
_NEVER = 1e9


def measure(recipe: Recipe, request: Request, rows: int, threads: int, prepared: Prepared | None) -> dict[str, Rate]:
    """The rates ``train``, of one worker with ``rows`` of a step, and ``read``, if there are ``prepared`` rows; those that are not given.

    Raises UserError where the recipe trains on a GPU and there is none.
    """
    found: dict[str, Rate] = {}
    if request.rate is None:
        if recipe.resources.use_gpu and not torch.cuda.is_available():
            raise UserError(
                "--measure with --gpus above 0 measures the step on a GPU, and this machine has none; give --rate or --gpu-tflops, "
                "or measure with --gpus 0"
            )
        found["train"] = measure_step(recipe, rows, threads, request.seconds)
    if request.read_rate is None and prepared is not None:
        found["read"] = measure_read(recipe, prepared, request.seconds)
    return found


def measure_step(recipe: Recipe, rows: int, threads: int, seconds: float) -> Rate:
    """Rows a second of one worker that trains the recipe's network on random rows in memory, for about so long.

    It takes ``rows`` of a step, or as many as leave time for several steps. On a CPU it has ``threads``.
    """
    keep_freed_memory()
    busy = f", load {os.getloadavg()[0]:.1f} before it" if hasattr(os, "getloadavg") else ""
    device = torch.device("cuda" if recipe.resources.use_gpu else "cpu")
    own = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        taken = min(rows, _FIRST_ROWS)
        while True:
            rate = _rows_per_s(recipe, taken, _LEAST_STEPS, device)
            most = rate * seconds / (_WARM_STEPS[device.type] + _LEAST_STEPS)
            if taken == rows or taken * _GROWTH > most:
                break
            taken = min(rows, taken * _GROWTH)
        rate = _rows_per_s(recipe, taken, max(_LEAST_STEPS, ceil(seconds * rate / taken)), device)
        how = "per second of CPU time" if _alone(device) else f"by the clock{busy}"
    finally:
        torch.set_num_threads(own)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{threads} thread{'' if threads == 1 else 's'}"
    return Rate(rate, "rows/s", "measured", f"this network by {where}, {taken} rows a step, without Ray, {how}")


def _rows_per_s(recipe: Recipe, rows: int, steps: int, device: torch.device) -> float:
    """The loop of a training, once it is warm."""
    training = recipe.training.model_copy(
        update={"epochs": 1, "batch_size": rows, "schedule": Choice(name="constant"), "swa": None, "validations": 1, "patience": None}
    )
    accumulate = min(training.accumulate, rows)
    features = len(recipe.data.features)
    torch.manual_seed(training.seed)
    network = build_network(recipe.network.name, recipe.network.options, features).to(device)
    batches = InMemory(_batches(recipe, rows), _WARM_STEPS[device.type] + steps)
    batches.sources = tuple(recipe.trained)
    batches.kinds = tuple(recipe.data.sources[name].kind for name in batches.sources)
    records: list[tuple[Record, float]] = []

    def add(record: Record) -> None:
        if record["event"] == "step":
            records.append((record, time.process_time()))

    training = training.model_copy(update={"accumulate": accumulate})
    Loop(network, batches, training, device, cpu_threading=recipe.resources.cpu_threading).fit(add, report_seconds=_NEVER)
    if _alone(device):
        (warm, began), (last, ended) = records[_WARM_RECORDS - 1], records[-1]
        return (last["step"] - warm["step"]) * rows / (ended - began)
    return steady([record for record, _ in records[_WARM_RECORDS:]])["rows/s"]


def _alone(device: torch.device) -> bool:
    """Whether one thread does everything, so that its CPU seconds tell what the clock would if no other work took turns with it."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def _batches(recipe: Recipe, rows: int) -> list[Batch]:
    """Random rows, each source's share of them together as a training has them."""
    shares = np.array(list(recipe.shares.values()) if recipe.shares else [1.0])
    edges = np.floor(np.cumsum(shares / shares.sum()) * rows + 0.5).astype(int)
    source = np.repeat(np.arange(len(shares), dtype=np.int16), np.diff(edges, prepend=0))
    return [{**batch, "source": source} for batch in random_batches(rows, INPUTS.width + LEVELS * len(recipe.data.features))]


def measure_read(recipe: Recipe, prepared: Prepared, seconds: float) -> Rate:
    """Rows that one CPU makes ready in a second of its time, by the way that a training of this recipe reads them."""
    flat = recipe.data.stream_from == "flat"
    batches = _flat(prepared) if flat else _shards(recipe, prepared)
    rows, stop, began = 0, time.perf_counter() + seconds, time.process_time()
    for taken in batches:
        rows += taken
        if time.perf_counter() >= stop:
            break
    rate = rows / (time.process_time() - began)
    return Rate(rate, "rows/s", "measured", f"prepared {'flat files' if flat else 'shards'}, per second of CPU time")


def _shards(recipe: Recipe, prepared: Prepared) -> Iterator[int]:
    stream = Stream.of(recipe, prepared)
    for epoch in count():
        for batch in stream.train(epoch):
            yield len(batch["row"])


def _flat(prepared: Prepared) -> Iterator[int]:
    files = [(manifest, index) for manifest in prepared.split("train") for index in range(len(manifest.files))]
    for manifest, index in cycle(files):
        yield len(read_file(manifest, index, prepared.transform)["row"])


class InMemory:
    """:class:`leapray.training.loop.Batches` of one epoch of ``steps``, whose batches lie in memory and come again when all were given."""

    sources: tuple[str, ...] = ("low-res",)
    kinds: tuple[str, ...] = ("low-res",)
    transform = Transform.identity(KAGGLE)

    def __init__(self, held: Sequence[Batch], steps: int) -> None:
        self.held, self.steps = held, steps
        self.validation_rows = len(held[0]["inputs"])

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        yield from islice(cycle(self.held), self.steps)

    def validate(self) -> Iterator[Batch]:
        yield self.held[0]


def random_batches(rows: int, inputs: int = INPUTS.width) -> list[Batch]:
    """Batches of scaled rows without meaning, ``inputs`` wide."""
    generator = np.random.default_rng(0)

    def normal(width: int) -> np.ndarray:
        return generator.standard_normal((rows, width), np.float32)

    return [
        {"inputs": normal(inputs), "targets": normal(TARGETS.width), "source": np.zeros(rows, np.int16), "row": np.arange(rows)}
        for _ in range(8)
    ]


def steady(records: Sequence[Record]) -> Mapping[str, float]:
    """Rows a second, and seconds of waiting for data in a second, of a loop's records once it is warm; nothing if none came since."""
    counted = [record for record in records if record["event"] == "step" and record["step"] > 5]
    if not counted:
        return {}
    seconds = sum(record["seconds"] for record in counted)
    rows = sum(record["rows_per_s"] * record["seconds"] for record in counted)
    return {"rows/s": rows / seconds, "wait": sum(record["data_wait_s"] for record in counted) / seconds}
