"""What steps cost: their time and how much of it they waited, and what they took of the process and of its GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any

import torch

_SAMPLE_SECONDS = 1.0
"""Between looks at a GPU; NVML tells of the last second or less."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Effort:
    """What some steps of this process cost; that of further ones is added."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds for data."""
    cpu_seconds: float = 0.0
    """Of all threads of the process."""
    memory: int | None = None
    """Bytes that the process held for itself after the steps; of several, the most."""
    gpu_use: tuple[float, int] = (0.0, 0)
    """Sum of samples from 0 to 1, and their number."""
    gpu_memory: int | None = None
    """The most bytes that tensors took on the GPU."""

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.steps + other.steps,
            self.seconds + other.seconds,
            self.waited + other.waited,
            self.cpu_seconds + other.cpu_seconds,
            _most(self.memory, other.memory),
            (self.gpu_use[0] + other.gpu_use[0], self.gpu_use[1] + other.gpu_use[1]),
            _most(self.gpu_memory, other.gpu_memory),
        )

    def figures(self, batch_size: int) -> dict[str, Any]:
        """What :data:`leapray.training.loop.Record` says of steps; nothing of no steps. ``batch_size`` is that of all ranks together."""
        if not self.steps:
            return {}
        busy, samples = self.gpu_use
        known = {"memory_bytes": self.memory, "gpu_use": busy / samples if samples else None, "gpu_memory_bytes": self.gpu_memory}
        return {
            "rows_per_s": self.steps * batch_size / self.seconds,
            "data_wait_s": self.waited,
            "data_wait_share": self.waited / self.seconds,
            "seconds": self.seconds,
            "cpus": self.cpu_seconds / self.seconds,
            **{key: value for key, value in known.items() if value is not None},
        }


class Meter:
    """Reads what steps take of this process and its device, without waiting for the device. To be used as a context.

    ``gpu_use`` tells how busy the GPU is, from 0 to 1; by default it is NVML, as far as it can be asked here.
    """

    def __init__(self, device: torch.device, gpu_use: Callable[[], float] | None = None) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device and gpu_use is None:
            gpu_use = _nvml(torch.cuda.current_device() if device.index is None else device.index)
        self._sampler = _Sampler(gpu_use) if gpu_use else None
        self.begin()

    def begin(self) -> None:
        """The next steps are measured from now on; else from the end of the last ones."""
        self._cpu = time.process_time()
        if self._sampler:
            self._sampler.take()
        if self._device:
            torch.cuda.reset_peak_memory_stats(self._device)

    def took(self, steps: int, seconds: float, waited: float) -> Effort:
        """What so many steps cost, which took so many seconds and waited for data for so many of these."""
        effort = Effort(
            steps,
            seconds,
            waited,
            time.process_time() - self._cpu,
            _own_memory(),
            self._sampler.take() if self._sampler else (0.0, 0),
            torch.cuda.max_memory_allocated(self._device) if self._device else None,
        )
        self.begin()
        return effort

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._sampler:
            self._sampler.stop()


class _Sampler:
    """Asks how busy the GPU is once a second, from a thread of its own; an answer that fails is the last one."""

    def __init__(self, ask: Callable[[], float]) -> None:
        self._ask, self._lock, self._stopped = ask, Lock(), Event()
        self._sum, self._count = 0.0, 0
        Thread(target=self._work, name="gpu use", daemon=True).start()

    def take(self) -> tuple[float, int]:
        """The sum and the number of the samples since the last call."""
        with self._lock:
            taken = self._sum, self._count
            self._sum, self._count = 0.0, 0
        return taken

    def stop(self) -> None:
        self._stopped.set()

    def _work(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            try:
                use = self._ask()
            except Exception:
                return
            with self._lock:
                self._sum, self._count = self._sum + use, self._count + 1


def _nvml(index: int) -> Callable[[], float] | None:
    """How busy a GPU is; None where NVML is not installed or does not tell, as of a part of a GPU."""

    def ask() -> float:
        return torch.cuda.utilization(index) / 100

    try:
        ask()
    except Exception:
        return None
    return ask


def _own_memory() -> int | None:
    """Bytes of the process's anonymous memory, without files and Ray's object store; None where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)


def _most(ours: int | None, theirs: int | None) -> int | None:
    known = [value for value in (ours, theirs) if value is not None]
    return max(known, default=None)
