"""The phases of a training step: named for a trace of the profiler, or timed."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from leapray.recipe import Profile

DATA_WAIT, COPY, FORWARD, LOSS = "data wait", "copy", "forward", "loss"
BACKWARD, OPTIMIZER, METRICS = "backward", "optimizer", "metrics"
PHASES = (DATA_WAIT, COPY, FORWARD, LOSS, BACKWARD, OPTIMIZER, METRICS)
"""Waiting for a batch, its copy to the device, the forward pass, the loss, the backward pass with the exchange of gradients, the update of
weights, averages and learning rate, and what a step keeps for the log."""


class Phases:
    """The phases of a step as context managers: ``with phases(FORWARD): ...``. This one does nothing with them."""

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def step_begins(self, done: int) -> None:
        """A step begins after ``done`` steps."""

    def close(self) -> None:
        """There are no more steps."""


UNTIMED = Phases()


class StepProfiler(Phases):
    """Records the steps that a recipe asks for with torch.profiler, with their phases by name.

    ``write`` gets the trace as JSON in Chrome's format, for https://ui.perfetto.dev or chrome://tracing, when the last of the steps has
    ended, or at the end of the training if that comes first. A training that goes on after these steps is not profiled again.
    """

    def __init__(self, asked: Profile, device: torch.device, write: Callable[[bytes], None]) -> None:
        self._steps = range(asked.start, asked.start + asked.steps)
        self._activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._write = write
        self._profile: profile | None = None

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        return record_function(name) if self._profile else nullcontext()

    def step_begins(self, done: int) -> None:
        if self._profile:
            if done in self._steps:
                self._profile.step()
            else:
                self.close()
        elif done in self._steps:
            self._profile = profile(activities=self._activities, record_shapes=True)
            self._profile.start()

    def close(self) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="leapray-profile-") as directory:
            path = Path(directory, "trace.json")
            self._profile.export_chrome_trace(str(path))
            self._profile = None
            self._write(path.read_bytes())


class PhaseTimer(Phases):
    """Seconds of each phase, added up over whole steps but for the first ``warm`` ones.

    The device finishes its work at the beginning and the end of a phase, so that phases do not overlap. Only the thread that made the
    timer is timed.
    """

    def __init__(self, device: torch.device, warm: int = 0) -> None:
        self.steps, self.whole = 0, 0.0
        """Steps that were timed, and their seconds."""
        self.seconds: dict[str, float] = {}
        self._device, self._warm, self._thread = device, warm, get_ident()
        self._running: dict[str, float] = defaultdict(float)
        self._began = 0.0

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        return self._timed(name) if get_ident() == self._thread else nullcontext()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = now(self._device)
        yield
        self._running[name] += now(self._device) - started

    def step_begins(self, done: int) -> None:
        if done == self._warm:
            self._began = now(self._device)
            self._running.clear()
        elif done > self._warm:
            self.steps, self.whole, self.seconds = done - self._warm, now(self._device) - self._began, dict(self._running)


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
