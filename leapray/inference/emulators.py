"""Several emulators on one device: raw columns in, their weighted mean with the physics out.

Shapes: n rows, m members, 368 targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.schema import TARGETS
from leapray.inference.weights import Combination
from leapray.models.directory import load_model
from leapray.models.emulator import Emulator, Physics
from leapray.models.row_threads import forward_pass

CPU_ROWS, GPU_ROWS = 512, 8192
"""Rows that pass through a network at a time: on a CPU few, whose activations stay in its caches; on a GPU halved where memory ends."""
_BLOCK_ROWS = 256
"""Rows that are averaged and corrected at a time on a CPU, for the same reason."""


@dataclass(frozen=True)
class Predicted:
    """Physical predictions, float64 ``(n, 368)``, column by column in memory: with the physics, and each member's own before it."""

    ensemble: np.ndarray
    members: tuple[np.ndarray, ...]


class Members:
    """Emulators on one device. Inputs are scaled once for all that scale alike."""

    def __init__(self, emulators: Sequence[Emulator], device: torch.device) -> None:
        self.emulators = [emulator.to(device) for emulator in emulators]
        self.device = device
        self.rows = CPU_ROWS if device.type == "cpu" else GPU_ROWS
        self._digests = [emulator.transform.input_digest() for emulator in emulators]

    @classmethod
    def load(cls, models: Sequence[str], device: torch.device) -> Members:
        """Emulators from their model directories. Raises UserError for one that cannot be read."""
        return cls([load_model(model).emulator for model in models], device)

    @torch.inference_mode()
    def tendencies(self, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each one's own output ``(n, 368)``, before the physics, column by column, for raw columns ``(n, 556)``, float64."""
        x = torch.from_numpy(inputs).to(self.device)
        own = [_by_column(len(x)) for _ in self.emulators]
        for index, output in enumerate(self.outputs(x)):
            for rows in _blocks(len(x), self.device):
                own[index][:, rows] = self.physical(index, output[rows], x[rows]).t()
        return tuple(values.numpy().T for values in own)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What each network gives for raw columns, still scaled: m times ``(n, 368)``."""
        scaled: dict[str, Tensor] = {}
        for emulator, digest in zip(self.emulators, self._digests, strict=True):
            if digest not in scaled:
                scaled[digest] = emulator.transform.scale_inputs(x)
        return [self._forward(emulator.network, scaled[digest]) for emulator, digest in zip(self.emulators, self._digests, strict=True)]

    def physical(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        """Some of the rows that a network gave for raw columns ``x``, in physical units."""
        return self.emulators[index].transform.unscale_targets(output, x)

    def _forward(self, network: nn.Module, scaled: Tensor) -> Tensor:
        parts: list[Tensor] = []
        start = 0
        with forward_pass(network, self.device) as forward:
            while start < len(scaled):
                try:
                    parts.append(forward(scaled[start : start + self.rows]))
                except torch.OutOfMemoryError:
                    if self.rows == 1:
                        raise
                    self.rows //= 2
                    continue
                start += len(parts[-1])
        return torch.cat(parts)


class Emulators:
    """Members whose physical outputs are averaged, column by column, before the physics is applied once."""

    def __init__(self, members: Members, combination: Combination) -> None:
        self.members = members
        self.weights, self.constant = (torch.from_numpy(part).to(members.device) for part in (combination.weights, combination.constant))
        self.physics = Physics().to(members.device)

    @torch.inference_mode()
    def predict(self, inputs: np.ndarray, *, members: bool = False) -> Predicted:
        """Predictions for raw columns ``(n, 556)``, float64, fastest column by column; of each member too if ``members``."""
        x = torch.from_numpy(inputs).to(self.members.device)
        outputs = self.members.outputs(x)
        own = [_by_column(len(x)) for _ in outputs] if members else []

        def physical(index: int, rows: slice) -> Tensor:
            values = self.members.physical(index, outputs[index][rows], x[rows])
            if own:
                own[index][:, rows] = values.t()
            return values

        ensemble = averaged(x, physical, self.weights, self.constant, self.physics)
        return Predicted(ensemble, tuple(values.numpy().T for values in own))


def averaged(x: Tensor, physical: Callable[[int, slice], Tensor], weights: Tensor, constant: Tensor, physics: Physics) -> np.ndarray:
    """The combination ``(n, 368)`` of what members give for raw columns ``x``, with the physics, column by column.

    ``physical`` gives a member's own output, by its number and for some rows, on the device of ``x``, ``weights (m, 368)``, ``constant
    (368,)`` and ``physics``.
    """
    ensemble = _by_column(len(x))
    for rows in _blocks(len(x), x.device):
        mean = constant
        for index, weight in enumerate(weights):
            mean = mean + weight * physical(index, rows)
        ensemble[:, rows] = physics(x[rows], mean).t()
    return ensemble.numpy().T


def _by_column(rows: int) -> Tensor:
    """Room for predictions on the host, float64 ``(368, n)``."""
    return torch.empty(TARGETS.width, rows, dtype=torch.float64)


def _blocks(rows: int, device: torch.device) -> Iterator[slice]:
    """The rows that are averaged and corrected at a time."""
    step = _BLOCK_ROWS if device.type == "cpu" else max(rows, 1)
    return (slice(start, start + step) for start in range(0, rows, step))
