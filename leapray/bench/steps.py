"""What takes the steps of ``bench train-step``: our loop, the original's step, the network alone, and the device's matrix product.

All have the same network, rows and device. What runs on a GPU is timed from when it has done everything before to when it has done the last
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, cycle, islice
from typing import Any

import torch
from torch import nn

from leapray.bench.compare import Figures
from leapray.data.features import channels_of
from leapray.models.registry import build_network
from leapray.recipe import Choice, Recipe, Training
from leapray.training.feed import Batch
from leapray.training.loop import Batches, Loop, Record
from leapray.training.pace import Peers
from leapray.training.phases import UNTIMED, Phases, now

WARM_STEPS = 5
"""Steps before the clock starts; a loop has taken them after its first two records."""
HELD = 8
"""Distinct batches that come again and again."""
_NEVER = 1e9
"""Seconds between records, so that the loop waits for the device as seldom as it can."""
_SMALL: dict[str, Any] = {"encoder": (64, 32), "lstm_hidden": 32, "lstm_layers": 2, "gru_hidden": 8, "head": (128,)}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def network_here(device: torch.device) -> Choice:
    """The base network on a GPU, a small one on a CPU."""
    return Choice(name="low-res-aqua", options=_SMALL if device.type == "cpu" else {})


class FewSteps:
    """So many steps of other batches, or of a few that lie in memory and come again and again, and one batch to validate on."""

    def __init__(self, batches: Batches, steps: int, held: Sequence[Batch] = ()) -> None:
        self.sources, self.kinds, self.transform = batches.sources, batches.kinds, batches.transform
        self.steps, self._batches, self._held = steps, batches, held
        self._last: Batch = held[0] if held else next(iter(batches.train(0)))
        self.validation_rows = len(self._last["inputs"])

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        epochs = chain.from_iterable(self._batches.train(number) for number in count())
        yield from islice(cycle(self._held) if self._held else epochs, self.steps)

    def validate(self) -> Iterator[Batch]:
        yield self._last


@dataclass(frozen=True)
class Work:
    """The steps of one worker of a recipe."""

    recipe: Recipe
    batches: Batches
    held: Sequence[Batch]
    device: torch.device
    steps: int = 3
    """Of a round; every contestant takes as many."""

    @classmethod
    def of(cls, recipe: Recipe, batches: Batches) -> Work:
        """On the device that the recipe asks for."""
        device = torch.device("cuda" if recipe.resources.use_gpu else "cpu")
        return cls(recipe, batches, list(islice(batches.train(0), HELD)), device)

    def lasting(self, seconds: float) -> Work:
        """The same with as many steps as take about so long."""
        return replace(self, steps=max(self.steps, round(seconds * bare(self)["rows/s"] / self.rows)))

    @property
    def rows(self) -> int:
        """Of a step of this worker."""
        return len(self.held[0]["inputs"])

    @property
    def training(self) -> Training:
        """The recipe's, of one epoch with one validation."""
        once = {"epochs": 1, "validations": 1, "patience": None, "swa": None, "schedule": Choice(name="constant")}
        return self.recipe.training.model_copy(update=once)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        network = self.recipe.network
        return build_network(network.name, network.options, channels_of(self.recipe.data)).to(self.device).train()

    def loop(self, batches: Batches, phases: Phases = UNTIMED) -> Loop:
        """A training of the recipe's network on other batches."""
        resources = self.recipe.resources
        peers = Peers(world=resources.processes)
        return Loop(self.build(), batches, self.training, self.device, peers, resources.cpu_threading, phases)


def ours(work: Work) -> Figures:
    """The loop of a training over batches in memory: copies, random numbers, forward, loss, backward, update, and the watch for faults."""
    records: list[Record] = []
    work.loop(FewSteps(work.batches, WARM_STEPS + work.steps, work.held)).fit(records.append, report_seconds=_NEVER)
    found = steady(records, WARM_STEPS)
    return found | {"rows/s": found["rows/s"] / work.recipe.resources.processes}


def steady(records: Sequence[Record], warm: int) -> dict[str, float]:
    """Rows a second, and seconds of waiting for data in a second, of a loop's records after ``warm`` steps; nothing if none came since."""
    counted = [record for record in records if record["event"] == "step" and record["step"] > warm]
    if not counted:
        return {}
    seconds = sum(record["seconds"] for record in counted)
    rows = sum(record["rows_per_s"] * record["seconds"] for record in counted)
    return {"rows/s": rows / seconds, "wait": sum(record["data_wait_s"] for record in counted) / seconds}


def bare(work: Work) -> Figures:
    """The network's forward and backward in our precision, on rows and a gradient of the output that are on the device already."""
    network, dtype = work.build(), DTYPES[work.training.precision]
    inputs, targets = (torch.from_numpy(work.held[0][name].copy()).to(work.device) for name in ("inputs", "targets"))

    def step() -> None:
        with torch.autocast(work.device.type, dtype, enabled=dtype is not torch.float32):
            prediction = network(inputs)
        # of a network that gives more than the targets, those are the first
        prediction[:, : targets.shape[1]].backward(targets.to(prediction.dtype))
        network.zero_grad(set_to_none=True)

    return {"rows/s": work.rows * steps_per_s(step, work.device, work.steps)}


def original(work: Work) -> Figures:
    """The step of the competition's 5th-place solution: fp16 with a scaler on a GPU, columns masked by multiplication, the loss read in
    every step."""
    return {"rows/s": work.rows * steps_per_s(original_step(work, work.build()), work.device, work.steps)}


def original_step(work: Work, network: nn.Module) -> Callable[[], None]:
    batches = cycle([tuple(torch.from_numpy(batch[name].copy()) for name in ("inputs", "targets")) for batch in work.held])
    optimizer = torch.optim.AdamW(network.parameters(), lr=6.5e-4, weight_decay=2e-3)
    half = work.device.type == "cuda"
    scaler, huber = torch.amp.GradScaler(work.device.type, enabled=half), nn.HuberLoss(delta=1.0)
    mask = torch.from_numpy(work.batches.transform.variables.targets.scored).float().to(work.device)

    def step() -> None:
        inputs, targets = (tensor.to(work.device) for tensor in next(batches))
        with torch.autocast(work.device.type, torch.float16, enabled=half):
            loss = huber(network(inputs) * mask, targets * mask)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        # what its progress bar shows
        loss.item()

    return step


def product(work: Work) -> Figures:
    """The product of two large square matrices in our precision."""
    size = 8192 if work.device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=work.device, dtype=DTYPES[work.training.precision]) for _ in range(2))
    return {"FLOP/s": 2 * size**3 * steps_per_s(lambda: torch.mm(a, b), work.device, 10)}


def steps_per_s(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Of so many steps after the warm ones."""
    for _ in range(WARM_STEPS):
        step()
    started = now(device)
    for _ in range(steps):
        step()
    return steps / (now(device) - started)
