"""A few rows of inputs with the outputs that they must give: what an exported file is checked by, here and in its host.

Shapes: r rows; n inputs of the host's layout; t = 368 targets.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import INPUTS, LEARNED, TARGETS
from leapray.data.transform import Transform
from leapray.evaluation.metrics import VARYING
from leapray.inference.export.emulator import CoupledEmulator

SPREAD, RELATIVE = 1e-4, 1e-6
RULE = f"|found - outputs| <= tolerance + {RELATIVE:g} * |outputs|, tolerance being {SPREAD:g} training standard deviations of the target"
_WATER = slice(INPUTS["state_q0001"].start, INPUTS["state_q0003"].stop)
_ROWS = 8
MOST_DIFFERENT = 0.01
"""Training standard deviations by which the float32 and the float64 entry may differ."""
_REAL_LIKE_ROWS = 512
_DRY = 0.2
"""Share of the water values that are 0."""


@dataclass(frozen=True)
class SelfTest:
    """Raw inputs ``(r, n)``, float64, and outputs ``(r, t)`` of both entries: ``outputs`` float64, ``outputs_float32`` float32.

    The first row holds the training means, the others lie within a standard deviation of them, and the last one has a NaN and an Inf.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    outputs_float32: np.ndarray
    tolerance: np.ndarray
    """``(t,)``: room for what float32 networks differ by between machines."""

    def content(self) -> bytes:
        """The arrays by name, as the bytes of an npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **asdict(self))
        return buffer.getvalue()

    def difference(self, run: Callable[[Tensor], Tensor], dtype: torch.dtype) -> str:
        """What an emulator with an entry of ``dtype`` gets wrong, as one clause, by all rows at once and one by one; empty if nothing."""
        expected = self.outputs_float32 if dtype == torch.float32 else self.outputs
        x = torch.from_numpy(self.inputs).to(dtype)
        with torch.inference_mode():
            for found in (run(x), torch.cat([run(x[row : row + 1]) for row in range(len(x))])):
                if found.dtype != dtype or found.shape != expected.shape:
                    return f"gives {found.dtype} {tuple(found.shape)}, expected {dtype} {expected.shape}"
                error = np.abs(found.numpy().astype(np.float64) - expected)
                # a NaN is beyond any room
                wrong = ~(error <= self.tolerance + RELATIVE * np.abs(expected))
                if wrong.any():
                    return f"differs in {int(wrong.sum())} of {wrong.size} numbers, by up to {np.nanmax(error):g}"
        return ""


@dataclass(frozen=True)
class EntryDifference:
    """By how much the float32 and the float64 entry of an emulator differ at the most, over the learned columns that vary in training and
    ``rows`` real-like rows: ``largest`` in ``units``, and the ``column`` where."""

    largest: float
    column: str
    rows: int
    units: str = "training standard deviations"


def entry_difference(emulator: CoupledEmulator, transform: Transform) -> EntryDifference:
    """Both entries on rows like real ones: heavy-tailed about the training means, and water that spans many magnitudes down to 0."""
    rng = np.random.default_rng(0)
    scaling = transform.inputs
    known = competition_columns(INPUTS).std
    mean = scaling.inverse(torch.zeros(1, scaling.mean.numel()))[:, : INPUTS.width]
    # of the size that columns have in years, not only in the training rows
    columns = mean + torch.from_numpy(known * rng.standard_t(3, size=(_REAL_LIKE_ROWS, INPUTS.width)))
    water = columns[:, _WATER].abs() * torch.from_numpy(10.0 ** -rng.exponential(8.0, size=(_REAL_LIKE_ROWS, 1)))
    columns[:, _WATER] = torch.where(torch.from_numpy(rng.random(water.shape) < _DRY), 0.0, water)
    inputs = emulator.layout.of_columns(columns)
    with torch.inference_mode():
        error = (emulator(inputs) - emulator(inputs.float()).double()).abs().amax(dim=0).numpy()
    std = np.sqrt(transform.statistics.variance)
    told = LEARNED & (std > 0) & (std >= math.sqrt(VARYING) * competition_columns(TARGETS).std)
    relative = np.where(told, error / np.where(told, std, 1.0), 0.0)
    place = int(relative.argmax())
    return EntryDifference(float(relative[place]), TARGETS.columns[place], _REAL_LIKE_ROWS)


def self_test(emulator: CoupledEmulator, transforms: Sequence[Transform]) -> SelfTest:
    """The self-test of an emulator, from its own outputs and the training statistics of its members."""
    scaling = transforms[0].inputs
    z = torch.sin(torch.arange(_ROWS).unsqueeze(1) * torch.arange(1.0, scaling.mean.numel() + 1))
    columns = scaling.inverse(z)[:, : INPUTS.width]
    columns[:, _WATER].abs_()
    inputs = emulator.layout.of_columns(columns)
    inputs[-1, INPUTS["state_t"].stop // 2] = torch.nan
    inputs[-1, INPUTS["state_q0001"].stop - 1] = torch.inf
    spread = torch.stack([transform.targets.scale.masked_fill(transform.targets.constant, 0.0) for transform in transforms]).amax(0)
    with torch.inference_mode():
        outputs, outputs_float32 = emulator(inputs).numpy(), emulator(inputs.float()).numpy()
    # hosts may flush what is smaller than float32's smallest normal number
    tolerance = SPREAD * spread.numpy() + np.finfo(np.float32).tiny
    return SelfTest(inputs.numpy(), outputs, outputs_float32, tolerance)
