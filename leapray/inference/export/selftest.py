"""A few rows of inputs with the outputs that they must give: what an exported file is checked by, here and in its host.

Shapes: r rows; n inputs of the host's layout; t targets.
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
from leapray.climsim.schema import WATER, Layout
from leapray.data.transform import Transform
from leapray.evaluation.metrics import VARYING
from leapray.inference.export.emulator import CoupledEmulator, raw_columns

SPREAD, RELATIVE = 1e-4, 1e-6
RULE = f"|found - outputs| <= tolerance + {RELATIVE:g} * |outputs|, tolerance being {SPREAD:g} training standard deviations of the target"
_ROWS = 8
_LEVEL = 30
"""Of the first two profiles of the host, where the last row of the self-test is not finite."""
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
    raw, places = emulator.variables.raw, _water(emulator)
    # of the size that columns have in years, not only in the training rows
    columns = emulator.input_means + torch.from_numpy(_spread(raw) * rng.standard_t(3, size=(_REAL_LIKE_ROWS, raw.width)))
    water = columns[:, places].abs() * torch.from_numpy(10.0 ** -rng.exponential(8.0, size=(_REAL_LIKE_ROWS, 1)))
    columns[:, places] = torch.where(torch.from_numpy(rng.random(water.shape) < _DRY), 0.0, water)
    inputs = emulator.layout.of_columns(columns)
    with torch.inference_mode():
        error = (emulator(inputs) - emulator(inputs.float()).double()).abs().amax(dim=0).numpy()
    std = np.sqrt(transform.statistics.variance)
    targets = emulator.variables.targets
    told = targets.learned & (std > 0) & (std >= math.sqrt(VARYING) * competition_columns(targets).std)
    relative = np.where(told, error / np.where(told, std, 1.0), 0.0)
    place = int(relative.argmax())
    return EntryDifference(float(relative[place]), targets.columns[place], _REAL_LIKE_ROWS)


def self_test(emulator: CoupledEmulator, transforms: Sequence[Transform]) -> SelfTest:
    """The self-test of an emulator, from its own outputs and the training statistics of its members."""
    raw, parts = emulator.variables.raw, []
    for name in raw.names:
        transform = next(one for one in transforms if name in one.variables.raw)
        z = torch.sin(torch.arange(_ROWS).unsqueeze(1) * torch.arange(1.0, transform.inputs.mean.numel() + 1))
        parts.append(raw_columns(transform, z)[:, transform.variables.raw[name]])
    columns, places = torch.cat(parts, dim=1), _water(emulator)
    columns[:, places] = columns[:, places].abs()
    inputs = emulator.layout.of_columns(columns)
    profiles = emulator.layout.profile_starts
    inputs[-1, profiles[0] + _LEVEL] = torch.nan
    inputs[-1, profiles[1] + _LEVEL] = torch.inf
    spread = torch.stack([transform.targets.scale.masked_fill(transform.targets.constant, 0.0) for transform in transforms]).amax(0)
    with torch.inference_mode():
        outputs, outputs_float32 = emulator(inputs).numpy(), emulator(inputs.float()).numpy()
    # hosts may flush what is smaller than float32's smallest normal number
    tolerance = SPREAD * spread.numpy() + np.finfo(np.float32).tiny
    return SelfTest(inputs.numpy(), outputs, outputs_float32, tolerance)


def _water(emulator: CoupledEmulator) -> np.ndarray:
    """Places of water among the raw columns, which is never negative."""
    raw = emulator.variables.raw
    return np.flatnonzero(raw.mask(f"state_{species}" for species in WATER if f"state_{species}" in raw))


def _spread(raw: Layout) -> np.ndarray:
    """Standard deviations ``(i,)`` over the competition's training rows; 0 of a variable that they do not have."""
    parts = []
    for variable in raw.variables:
        try:
            parts.append(competition_columns(Layout([variable])).std)
        except KeyError:
            parts.append(np.zeros(variable.levels))
    return np.concatenate(parts)
