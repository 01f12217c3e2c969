"""One step of the hidden scheme: what the embedded model would do to a set of columns in 1 200 s.

Radiation, convection, mixing, clouds and precipitation act one after another, each in a form that keeps water, momentum and energy.
The sub-grid part multiplies the rates of these processes, so that budgets and signs hold whatever is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from leapray.climsim.schema import STEP_SECONDS
from leapray.climsim.synthetic.clouds import CloudScheme, form_clouds, precipitate
from leapray.climsim.synthetic.column import TOP, Column
from leapray.climsim.synthetic.convection import convect
from leapray.climsim.synthetic.mixing import MIXED, mix, mixing_strength
from leapray.climsim.synthetic.radiation import radiate, radiation_step
from leapray.climsim.synthetic.weather import WaveField, vertical_loadings

NOISES = (*MIXED, "growth", "loss")
_PATTERNS = 36


@dataclass(frozen=True)
class Coefficients:
    """The scheme's calibrated coefficients, per level ``(60,)``; ``convection`` is the plume's strength.

    ``exchange`` and ``noise`` are by name of a mixed group or cloud process; an interface takes the value of the layer above it.
    """

    ozone_absorption: np.ndarray
    well_mixed: np.ndarray
    clouds: CloudScheme
    convection: float
    exchange: dict[str, np.ndarray]
    noise: dict[str, np.ndarray]


@dataclass(frozen=True)
class SubGrid:
    """Standard normal draws at a step: plume and cloud cover ``(n,)``, the noises by name ``(60, n)``."""

    plume: np.ndarray
    cover: np.ndarray
    profiles: dict[str, np.ndarray]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Draws of several steps side by side."""
        profiles = {name: np.concatenate([part.profiles[name] for part in parts], axis=1) for name in NOISES}
        return cls(np.concatenate([part.plume for part in parts]), np.concatenate([part.cover for part in parts]), profiles)


class SubGridNoise:
    """The irreducible part: fields with a memory of hours and the size of a low-res column, one realization of many."""

    def __init__(self, points: np.ndarray, seed: int, realization: int) -> None:
        self._field = WaveField(points, _PATTERNS * len(NOISES) + 2, (seed, 2, realization), length=0.12, days=0.15, waves=128)
        self._loadings = vertical_loadings(_PATTERNS, 1.0)

    def at(self, step: int) -> SubGrid:
        patterns = self._field.at(step)
        blocks = patterns[2:].reshape(len(NOISES), _PATTERNS, -1)
        return SubGrid(patterns[0], patterns[1], {name: self._loadings @ block for name, block in zip(NOISES, blocks, strict=True)})


@dataclass(frozen=True)
class Budget:
    """What a step did to each column, W/m2 ``(n,)``."""

    latent_heating: np.ndarray
    radiative_convergence: np.ndarray


_STIRRED = 4
_TRACE_RATE = 1.2e-14
_PLUME_NOISE = 0.4
_COVER_NOISE = 0.25


def _factor(width: np.ndarray | float, draw: np.ndarray) -> np.ndarray:
    """Positive factor of mean 1 with log-normal spread, draws beyond 2.3 standard deviations brought back to keep a step bounded."""
    return np.exp(width * np.clip(draw, -2.3, 2.3) - 0.5 * np.square(width))


def step_physics(inputs: Mapping[str, np.ndarray], coefficients: Coefficients, subgrid: SubGrid) -> tuple[dict[str, np.ndarray], Budget]:
    """Every variable of an mlo file from those of an mli file, and the step's energy budget."""
    column = Column.of(inputs)
    factor = {name: _factor(coefficients.noise[name][:, None], subgrid.profiles[name]) for name in NOISES}
    radiation = radiate(column, inputs, coefficients.ozone_absorption, coefficients.well_mixed, _factor(_COVER_NOISE, subgrid.cover))
    strength = mixing_strength(column, inputs)
    radiation_step(column, radiation)
    drive = 0.4 + 1.2 / (1 + np.exp(-(inputs["pbuf_LHFLX"] + inputs["pbuf_SHFLX"] - 80.0) / 50.0))
    convective = convect(column, coefficients.convection, drive, _factor(_PLUME_NOISE, subgrid.plume))
    mix(column, strength, {name: (coefficients.exchange[name][:, None] * factor[name])[:-1] for name in MIXED})
    turbulence = np.vstack([strength, strength[-1:]])
    clear = form_clouds(column, coefficients.clouds, turbulence, factor["growth"], factor["loss"])
    rain = precipitate(column, coefficients.clouds, convective, factor["loss"], clear)
    _stir_top(column, subgrid.profiles["water"])
    outputs = {
        "state_t": column.temperature,
        "state_q0001": column.vapour,
        "state_q0002": column.cloud - column.ice,
        "state_q0003": column.ice,
        "state_u": column.zonal,
        "state_v": column.meridional,
        "cam_out_PRECC": rain.total,
        "cam_out_PRECSC": rain.snow,
    } | radiation.fluxes
    for name in ("state_q0002", "state_q0003"):
        outputs[name] = _stepped(inputs[name], outputs[name])
    return outputs, Budget(column.latent_heating(), radiation.convergence)


def _stepped(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Condensate as the model stores it: its tendency added to what was there, which leaves rounding residue in place of some zeros."""
    stored = np.maximum(before + STEP_SECONDS * ((after - before) / STEP_SECONDS), 0.0)
    stored[:TOP] = before[:TOP]
    return stored


def _stir_top(column: Column, draws: np.ndarray) -> None:
    """Exchange a trace of vapour among the uppermost layers, which in the real data is rounding noise of about 1e-14 kg/kg/s."""
    for above, below in pairwise(range(_STIRRED)):
        amount = _TRACE_RATE * STEP_SECONDS * draws[above] * column.mass[above]
        column.vapour[above] += amount / column.mass[above]
        column.vapour[below] -= amount / column.mass[below]
