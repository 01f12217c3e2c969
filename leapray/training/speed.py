"""How fast this machine trains a recipe's network: the training loop on random rows in memory, without Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat

import numpy as np
import torch

from leapray.console import counted
from leapray.data.features import channels_of
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.models.registry import build_network
from leapray.recipe import Choice, Recipe
from leapray.training.feed import Batch
from leapray.training.loop import Loop, Record
from leapray.training.memory import keep_freed_memory

_FIRST_ROWS, _LEAST_STEPS, _WARM_RECORDS = 16, 8, 2


class RandomBatches:
    """:class:`leapray.training.loop.Batches` that give the same ``rows`` random rows in every step, of all sources in turn."""

    steps = 1 << 20
    """More than are ever taken."""

    def __init__(self, recipe: Recipe, rows: int) -> None:
        self.transform = Transform.identity(recipe.data.variable_set, recipe.data.features)
        self.validation_rows = rows
        self.sources = tuple(recipe.trained)
        self.kinds = tuple(recipe.data.sources[name].kind for name in self.sources)
        widths = {"inputs": self.transform.channels.inputs.width, "targets": self.transform.channels.targets.width}
        generator, number = np.random.default_rng(0), np.arange(rows)
        values = {name: generator.standard_normal((rows, width), np.float32) for name, width in widths.items()}
        self._batch: Batch = {**values, "source": (number % len(self.sources)).astype(np.int16), "row": number}

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        return repeat(self._batch)

    def validate(self) -> Iterator[Batch]:
        yield self._batch


class _EndedError(Exception):
    """The measurement has taken long enough."""


def training_rate(recipe: Recipe, rows: int, threads: int, seconds: float) -> tuple[float, str]:
    """Rows a second of one worker, measured for about so many seconds, and on what.

    A step has ``rows`` rows, or fewer where the time does not suffice for 8 such steps. On a CPU it has ``threads``. Raises UserError where
    the recipe trains on a GPU and there is none.
    """
    if gpu := recipe.resources.use_gpu:
        if not torch.cuda.is_available():
            raise UserError("--measure needs the GPU that is planned with, and this machine has none; give --rate, or plan with --gpus 0")
        device = torch.cuda.get_device_name()
    else:
        device = f"{threads} thread{'s' * (threads > 1)} of this machine, load {os.getloadavg()[0]:.1f}"
    keep_freed_memory()
    own = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        taken = min(rows, _FIRST_ROWS)
        rate = _rate(recipe, taken, seconds / 4, gpu)
        if (fits := min(rows, int(rate * seconds / _LEAST_STEPS))) > taken:
            rate, taken = _rate(recipe, fits, seconds, gpu), fits
    finally:
        torch.set_num_threads(own)
    return rate, f"{device}, {counted(taken)} rows a step"


def _rate(recipe: Recipe, rows: int, seconds: float, gpu: bool) -> float:
    """Rows a second of the loop after its first records."""
    changes = {"epochs": 1, "batch_size": rows, "schedule": Choice(name="constant"), "swa": None, "validations": 1, "patience": None}
    training = recipe.training.model_copy(update=changes | {"accumulate": min(recipe.training.accumulate, rows)})
    device = torch.device("cuda" if gpu else "cpu")
    network = build_network(recipe.network.name, recipe.network.options, channels_of(recipe.data)).to(device)
    loop = Loop(network, RandomBatches(recipe, rows), training, device, cpu_threading=recipe.resources.cpu_threading)
    records: list[Record] = []
    stop = time.perf_counter() + seconds

    def add(record: Record) -> None:
        records.append(record)
        if len(records) > _WARM_RECORDS and time.perf_counter() > stop:
            raise _EndedError

    with suppress(_EndedError):
        loop.fit(add)
    warm = records[_WARM_RECORDS:]
    return sum(record["rows_per_s"] * record["seconds"] for record in warm) / sum(record["seconds"] for record in warm)
