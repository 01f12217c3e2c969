"""Several emulators on one device: raw columns in, their weighted mean with the physics out.

Shapes: n rows, i raw inputs, m members, t targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.schema import VariableSet, common
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
    """Physical predictions, float64 ``(n, t)``, column by column in memory: with the physics, and each member's own before it."""

    ensemble: np.ndarray
    members: tuple[np.ndarray, ...]


class Members:
    """Emulators on one device. Inputs are scaled once for all that scale alike."""

    def __init__(self, emulators: Sequence[Emulator], device: torch.device, variables: VariableSet | None = None) -> None:
        self.emulators = [emulator.to(device) for emulator in emulators]
        self.device = device
        self.rows = CPU_ROWS if device.type == "cpu" else GPU_ROWS
        self._digests = [emulator.transform.input_digest() for emulator in emulators]
        sets = [emulator.transform.variables for emulator in emulators]
        self.variables = common(sets) if variables is None else variables
        """Of the rows that they are given, which hold what each of them needs."""
        raw = self.variables.raw
        self._places = [None if one.raw == raw else torch.from_numpy(raw.places(one.raw.columns)).to(device) for one in sets]

    @classmethod
    def load(cls, models: Sequence[str], device: torch.device, variables: VariableSet | None = None) -> Members:
        """Emulators from their model directories. Raises UserError for one that cannot be read."""
        return cls([load_model(model).emulator for model in models], device, variables)

    @torch.inference_mode()
    def tendencies(self, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each one's own output ``(n, t)``, before the physics, column by column, for raw columns ``(n, i)``, float64."""
        x = torch.from_numpy(inputs).to(self.device)
        own = [_by_column(self.variables, len(x)) for _ in self.emulators]
        for index, output in enumerate(self.outputs(x)):
            for rows in _blocks(len(x), self.device):
                own[index][:, rows] = self.physical(index, output[rows], x[rows]).t()
        return tuple(values.numpy().T for values in own)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What each network gives for raw columns, still scaled: m times ``(n, t)``."""
        scaled: dict[str, Tensor] = {}
        for index, (emulator, digest) in enumerate(zip(self.emulators, self._digests, strict=True)):
            if digest not in scaled:
                scaled[digest] = emulator.transform.scale_inputs(self._own(index, x))
        return [self._forward(emulator.network, scaled[digest]) for emulator, digest in zip(self.emulators, self._digests, strict=True)]

    def physical(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        """Some of the rows that a network gave for raw columns ``x``, in physical units."""
        return self.emulators[index].transform.unscale_targets(output, self._own(index, x))

    def _own(self, index: int, x: Tensor) -> Tensor:
        """The raw columns of a member's own variables."""
        places = self._places[index]
        # column by column, as rows are given
        return x if places is None else x.t().index_select(0, places).t()

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
        self.physics = Physics(members.variables).to(members.device)

    @torch.inference_mode()
    def predict(self, inputs: np.ndarray, *, members: bool = False) -> Predicted:
        """Predictions for raw columns ``(n, i)``, float64, fastest column by column; of each member too if ``members``."""
        x = torch.from_numpy(inputs).to(self.members.device)
        outputs = self.members.outputs(x)
        own = [_by_column(self.members.variables, len(x)) for _ in outputs] if members else []

        def physical(index: int, rows: slice) -> Tensor:
            values = self.members.physical(index, outputs[index][rows], x[rows])
            if own:
                own[index][:, rows] = values.t()
            return values

        ensemble = averaged(x, physical, self.weights, self.constant, self.physics)
        return Predicted(ensemble, tuple(values.numpy().T for values in own))


def averaged(x: Tensor, physical: Callable[[int, slice], Tensor], weights: Tensor, constant: Tensor, physics: Physics) -> np.ndarray:
    """The combination ``(n, t)`` of what members give for raw columns ``x``, with the physics, column by column.

    ``physical`` gives a member's own output, by its number and for some rows, on the device of ``x``, ``weights (m, t)``, ``constant
    (t,)`` and ``physics``.
    """
    ensemble = torch.empty(len(constant), len(x), dtype=torch.float64)
    for rows in _blocks(len(x), x.device):
        mean = constant
        for index, weight in enumerate(weights):
            mean = mean + weight * physical(index, rows)
        ensemble[:, rows] = physics(x[rows], mean).t()
    return ensemble.numpy().T


def _by_column(variables: VariableSet, rows: int) -> Tensor:
    """Room for predictions on the host, float64 ``(t, n)``."""
    return torch.empty(variables.targets.width, rows, dtype=torch.float64)


def _blocks(rows: int, device: torch.device) -> Iterator[slice]:
    """The rows that are averaged and corrected at a time."""
    step = _BLOCK_ROWS if device.type == "cpu" else max(rows, 1)
    return (slice(start, start + step) for start in range(0, rows, step))
