"""Several emulators on one device: raw columns in, their weighted mean with the physics out.

Shapes: n rows, m members, 368 targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.schema import TARGETS
from leapray.models.directory import load_model
from leapray.models.emulator import Emulator

CPU_ROWS, GPU_ROWS = 512, 8192
"""Rows that pass through a network at a time: on a CPU few, whose activations stay in its caches; on a GPU halved where memory ends."""
_BLOCK_ROWS = 256
"""Rows that are averaged and corrected at a time on a CPU, for the same reason."""


@dataclass(frozen=True)
class Predicted:
    """Physical predictions, float64 ``(n, 368)``, column by column in memory: with the physics, and each member's own before it."""

    ensemble: np.ndarray
    members: tuple[np.ndarray, ...]


class Emulators:
    """Emulators on one device whose physical outputs are averaged, column by column, before the physics is applied once.

    ``weights`` is float64 ``(m, 368)``. Inputs are scaled once for all members that scale alike.
    """

    def __init__(self, emulators: Sequence[Emulator], weights: np.ndarray, device: torch.device) -> None:
        self.emulators = [emulator.to(device) for emulator in emulators]
        self.weights = torch.from_numpy(np.asarray(weights, np.float64)).to(device)
        self.device = device
        self.rows = CPU_ROWS if device.type == "cpu" else GPU_ROWS
        self._digests = [emulator.transform.digest() for emulator in emulators]

    @classmethod
    def load(cls, models: Sequence[str], weights: np.ndarray, device: torch.device) -> Emulators:
        """Emulators from their model directories. Raises UserError for one that cannot be read."""
        return cls([load_model(model).emulator for model in models], weights, device)

    @torch.inference_mode()
    def predict(self, inputs: np.ndarray, *, members: bool = False) -> Predicted:
        """Predictions for raw columns ``(n, 556)``, float64, fastest column by column; of each member too if ``members``."""
        x = torch.from_numpy(inputs).to(self.device)
        outputs = self._outputs(x)
        kept = [torch.empty(TARGETS.width, len(x), dtype=torch.float64) for _ in range(1 + members * len(outputs))]
        step = _BLOCK_ROWS if self.device.type == "cpu" else len(x)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            mean = torch.zeros((), dtype=torch.float64, device=self.device)
            for index, (emulator, output) in enumerate(zip(self.emulators, outputs, strict=True)):
                physical = emulator.transform.unscale_targets(output[rows])
                if members:
                    kept[1 + index][:, rows] = physical.t()
                mean = mean + self.weights[index] * physical
            kept[0][:, rows] = self.emulators[0].physics(x[rows], mean).t()
        ensemble, *own = (tensor.numpy().T for tensor in kept)
        return Predicted(ensemble, tuple(own))

    def _outputs(self, x: Tensor) -> list[Tensor]:
        """What each network gives for raw columns, still scaled: m times ``(n, 368)``."""
        scaled: dict[str, Tensor] = {}
        for emulator, digest in zip(self.emulators, self._digests, strict=True):
            if digest not in scaled:
                scaled[digest] = emulator.transform.scale_inputs(x)
        return [self._forward(emulator.network, scaled[digest]) for emulator, digest in zip(self.emulators, self._digests, strict=True)]

    def _forward(self, network: nn.Module, scaled: Tensor) -> Tensor:
        parts: list[Tensor] = []
        start = 0
        while start < len(scaled):
            try:
                parts.append(network(scaled[start : start + self.rows]))
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
                self.rows //= 2
                continue
            start += len(parts[-1])
        return torch.cat(parts)
