"""Batches on their way to the device: on a GPU through pinned memory and a stream of their own, so that a copy runs beside the step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leapray.training.phases import COPY, DATA_WAIT, UNTIMED, Phases

Batch = Mapping[str, np.ndarray]
"""``inputs`` (b, i) and ``targets`` (b, t), float32, scaled, ``source`` int16 (b,) and ``row`` int64 (b,), the rows' keys."""

_IN_FLIGHT = 4
"""Batches that may wait for a GPU at a time."""


class OnDevice(NamedTuple):
    """A batch on the device: ``inputs`` (b, i) and ``targets`` (b, t), float32, and ``source`` int64 (b,)."""

    inputs: Tensor
    targets: Tensor
    source: Tensor


class Feed:
    """An iterator of batches on the device, which knows the keys of the last one's rows (``row``, on the host), and how long it waited
    for data (``waited``, seconds)."""

    def __init__(self, batches: Iterator[Batch], device: torch.device, phases: Phases = UNTIMED) -> None:
        self.waited = 0.0
        self.row = np.empty(0, np.int64)
        self._batches = batches
        self._device, self._phases = device, phases
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._taken: deque[torch.cuda.Event] = deque()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> OnDevice:
        asked = time.perf_counter()
        with self._phases(DATA_WAIT):
            batch = next(self._batches)
        self.waited += time.perf_counter() - asked
        self.row = batch["row"]
        with self._phases(COPY):
            arrays = batch["inputs"], batch["targets"], batch["source"].astype(np.int64)
            return OnDevice(*(map(_tensor, arrays) if self._stream is None else self._copied(arrays, self._stream)))

    def _copied(self, arrays: tuple[np.ndarray, ...], stream: torch.cuda.Stream) -> Iterator[Tensor]:
        """The arrays on the GPU; the steps launched so far go on while they are copied."""
        if len(self._taken) == _IN_FLIGHT:
            self._taken.popleft().synchronize()
        current = torch.cuda.current_stream(self._device)
        self._taken.append(current.record_event())
        with torch.cuda.stream(stream):
            tensors = [_pinned(array).to(self._device, non_blocking=True) for array in arrays]
        current.wait_stream(stream)
        for tensor in tensors:
            # its memory was taken on the other stream, and must not be given away while this one reads it
            tensor.record_stream(current)
        return iter(tensors)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _pinned(array: np.ndarray) -> Tensor:
    host = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=True)
    np.copyto(host.numpy(), array)
    return host
