"""A training step and what it is measured against: the original's step, the network alone, and the device's matrix product.

All of them have the same network, rows and device. What runs on a GPU is timed from when it has done everything before to when it
has done the last step, with nothing in between waiting for it that a training would not wait for.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from threading import get_ident
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from leapray.bench.compare import Figures
from leapray.climsim.schema import INPUTS, SCORED, TARGETS
from leapray.data.transform import Transform
from leapray.models.cost import cost_of
from leapray.models.registry import build_network
from leapray.recipe import Choice, CpuThreading, Training
from leapray.training.feed import Batch
from leapray.training.loop import Loop, Record

WARM_STEPS = 5
"""Steps before the clock starts; a loop has taken them after its first two records."""
_HELD = 8
"""Distinct batches that come again and again."""
_TRIED = 3
"""Steps after which it is known how many take the time of a round."""
_NEVER = 1e9
"""Seconds between records, so that the loop waits for the device as seldom as it can."""
_SMALL: dict[str, Any] = {"encoder": (64, 32), "lstm_hidden": 32, "lstm_layers": 2, "gru_hidden": 8, "head": (128,)}

Precision = Literal["float32", "bf16"]
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setup:
    """What is trained, where, and how long a round of it takes."""

    device: torch.device
    network: Choice
    precision: Precision
    batch_size: int
    matrix: int
    """Rows and columns of the matrices whose product is timed."""
    seconds: float
    steps: int = 0
    """Of a round; every contestant takes as many."""
    cpu_threading: CpuThreading | None = None
    """What the threads of a CPU divide in our step (``resources.cpu_threading``)."""

    @property
    def training(self) -> Training:
        """One epoch by the original's optimizer and loss (FACTS section 4a)."""
        optimizer = {"name": "adamw", "options": {"lr": 6.5e-4, "weight_decay": 2e-3}}
        return Training.model_validate(
            {"run": "bench", "epochs": 1, "batch_size": self.batch_size, "precision": self.precision, "optimizer": optimizer}
        )

    def steps_in(self, seconds: float) -> int:
        """Steps that take about so long."""
        return round(seconds * self.steps / self.seconds)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return build_network(self.network.name, self.network.options).to(self.device).train()


def setup_here(quick: bool) -> Setup:
    """The base network in the original's batches on a GPU; a small one, in batches to match, on a CPU."""
    seconds = 0.2 if quick else 2.0
    if torch.cuda.is_available():
        setup = Setup(torch.device("cuda"), Choice(name="low-res-aqua"), "bf16", 4000, 8192, seconds)
    else:
        rows, matrix = (64, 512) if quick else (256, 2048)
        setup = Setup(torch.device("cpu"), Choice(name="low-res-aqua", options=_SMALL), "float32", rows, matrix, seconds)
    per_s = Bare(setup).steps_per_s(_TRIED)
    return replace(setup, steps=max(_TRIED, round(seconds * per_s)))


class InMemory:
    """:class:`leapray.training.loop.Batches` of one epoch of ``steps``, whose batches lie in memory and come again when all were given."""

    sources: tuple[str, ...] = ("low-res",)
    kinds: tuple[str, ...] = ("low-res",)
    transform = Transform.identity()

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
        for _ in range(_HELD)
    ]


class Ours:
    """The loop of a training over batches in memory: copies, random numbers, forward, loss, backward, update, and the watch for faults."""

    def __init__(self, setup: Setup, held: Sequence[Batch]) -> None:
        self._setup, self._held, self._network = setup, held, setup.build()

    def __call__(self) -> Figures:
        records: list[Record] = []
        batches = InMemory(self._held, WARM_STEPS + self._setup.steps)
        setup = self._setup
        loop = Loop(self._network, batches, setup.training, setup.device, cpu_threading=setup.cpu_threading)
        loop.fit(records.append, report_seconds=_NEVER)
        return steady(records)


def steady(records: Sequence[Record]) -> Figures:
    """Rows a second, and seconds of waiting for data in a second, of a loop's records once it is warm; nothing if none came since."""
    counted = [record for record in records if record["event"] == "step" and record["step"] > WARM_STEPS]
    if not counted:
        return {}
    seconds = sum(record["seconds"] for record in counted)
    rows = sum(record["rows_per_s"] * record["seconds"] for record in counted)
    return {"rows/s": rows / seconds, "wait": sum(record["data_wait_s"] for record in counted) / seconds}


class _Timed(ABC):
    """Something that is done over and over."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @abstractmethod
    def step(self) -> None:
        """Do it once."""

    def steps_per_s(self, steps: int) -> float:
        for _ in range(WARM_STEPS):
            self.step()
        started = _now(self.setup.device)
        for _ in range(steps):
            self.step()
        return steps / (_now(self.setup.device) - started)

    def __call__(self) -> Figures:
        return {"rows/s": self.steps_per_s(self.setup.steps) * self.setup.batch_size}


class Original(_Timed):
    """The step as the original takes it: fp16 with a scaler on a GPU, columns masked by multiplication, the loss read in every step."""

    def __init__(self, setup: Setup, held: Sequence[Batch]) -> None:
        super().__init__(setup)
        self._batches = cycle([tuple(torch.from_numpy(batch[name]) for name in ("inputs", "targets")) for batch in held])
        self._network = setup.build()
        self._optimizer = torch.optim.AdamW(self._network.parameters(), **setup.training.optimizer.options)
        self._half = setup.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(setup.device.type, enabled=self._half)
        self._loss = nn.HuberLoss(delta=1.0)
        self._mask = torch.from_numpy(SCORED).float().to(setup.device)

    def step(self) -> None:
        inputs, targets = (tensor.to(self.setup.device) for tensor in next(self._batches))
        with torch.autocast(self.setup.device.type, torch.float16, enabled=self._half):
            loss = self._loss(self._network(inputs) * self._mask, targets * self._mask)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        # what its progress bar shows
        loss.item()


class Bare(_Timed):
    """The network's forward and backward in our precision, on rows and a gradient of the output that lie on the device already."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._network = setup.build()
        self._inputs, self._gradient = (torch.randn(setup.batch_size, side.width, device=setup.device) for side in (INPUTS, TARGETS))

    def step(self) -> None:
        dtype = _DTYPES[self.setup.precision]
        with torch.autocast(self.setup.device.type, dtype, enabled=dtype is not torch.float32):
            prediction = self._network(self._inputs)
        prediction.backward(self._gradient)
        self._network.zero_grad(set_to_none=True)


class MatrixProduct(_Timed):
    """The product of two large square matrices in our precision."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        shape = (setup.matrix, setup.matrix)
        self._a, self._b = (torch.randn(shape, device=setup.device, dtype=_DTYPES[setup.precision]) for _ in range(2))

    def step(self) -> None:
        torch.mm(self._a, self._b)

    def __call__(self) -> Figures:
        flop = 2 * self.setup.matrix**3
        return {"FLOP/s": flop * self.steps_per_s(max(_TRIED, round(self.setup.seconds * self.steps_per_s(_TRIED))))}


def forward_flop(network: nn.Module, inputs: int = INPUTS.width) -> int:
    """Floating-point operations of one row's way forward: two for each weight of a linear or recurrent layer at each position it is used.

    The row has so many ``inputs``. A training takes three times as many: the way back is taken for the inputs of a layer and for its
    weights.
    """
    return cost_of(network, inputs).forward_flop


def phases(setup: Setup, held: Sequence[Batch]) -> Mapping[str, float]:
    """Milliseconds that each phase of our step takes where everything waits for the device, so that nothing runs beside anything else.

    Of threads that divide the rows, these are the phases of the first; that it waits for the others is ``rest``.
    """
    clock, own = _Clock(setup.device), get_ident()

    class Marked(InMemory):
        def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            for step, batch in enumerate(super().train(epoch, first_step)):
                clock.mark("rest")
                if step == WARM_STEPS:
                    clock.seconds.clear()
                yield batch

    def mark(phase: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            # a validation passes here as well
            if network.training and get_ident() == own:
                clock.mark(phase)

        return hook

    network = setup.build()
    loop = Loop(network, Marked(held, WARM_STEPS + setup.steps), setup.training, setup.device, cpu_threading=setup.cpu_threading)
    network.register_forward_pre_hook(mark("data and copy"))
    network.register_forward_hook(mark("forward"))
    loop.loss.register_forward_hook(mark("loss"))
    for parameter in network.parameters():
        # the last of them ends the backward pass
        parameter.register_hook(mark("backward"))  # type: ignore[no-untyped-call]
    loop.optimizer.register_step_pre_hook(mark("rest"))
    loop.optimizer.register_step_post_hook(mark("optimizer"))
    loop.fit(report_seconds=_NEVER)
    return {phase: 1000 * seconds / setup.steps for phase, seconds in clock.seconds.items()}


class _Clock:
    """Seconds between marks, added up by what they are the end of."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._last = device, _now(device)

    def mark(self, phase: str) -> None:
        now = _now(self._device)
        self.seconds[phase] += now - self._last
        self._last = now


def _now(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
