"""Turbulent exchange between neighbouring layers, in flux form: nothing enters at the top or at the ground.

The surface fluxes and the shear set how strongly the layers mix; what is mixed is only what the column holds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from leapray.climsim.synthetic.column import TOP, Column
from leapray.climsim.synthetic.thermo import HEAT_CAPACITY

MIXED = ("static", "water", "cloud", "wind")
"""Groups of quantities that are mixed with a strength and a sub-grid noise of their own."""
_LARGEST_COURANT = 0.4


def mixing_strength(column: Column, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Relative strength of turbulence at each interface ``(59, n)``: the mixed layer over the ground, plus shear against stability aloft.

    The mixed layer reaches as far up as a parcel warmed by the surface fluxes stays buoyant (a bulk Richardson criterion).
    """
    dry_static = column.temperature + column.geopotential / HEAT_CAPACITY
    push = inputs["pbuf_SHFLX"] + 0.07 * inputs["pbuf_LHFLX"]
    stress = np.hypot(inputs["pbuf_TAUX"], inputs["pbuf_TAUY"])
    parcel = dry_static[-1] + 0.5 + 2.5 * np.tanh(push / 80.0)
    mixed = 1 / (1 + np.exp(np.clip((dry_static[:-1] - parcel) / 0.8, -30, 30)))
    ground_driven = mixed * (0.2 + np.log1p(np.exp(np.clip(push / 40.0, -30, 30))) + 4.0 * np.sqrt(stress))
    rise = np.maximum(column.geopotential[:-1] - column.geopotential[1:], 1.0)
    shear = (column.zonal[:-1] - column.zonal[1:]) ** 2 + (column.meridional[:-1] - column.meridional[1:]) ** 2
    stability = rise * np.maximum(dry_static[:-1] - dry_static[1:], 0.02) / column.temperature[1:]
    return ground_driven + 6.0 * (shear / (shear + stability)) ** 2 + 0.02


def mix(column: Column, strength: np.ndarray, factors: Mapping[str, np.ndarray]) -> None:
    """Mix the column for one step.

    ``strength`` ``(59, n)`` is the relative strength; ``factors`` gives for each of ``MIXED`` the share of the thinner neighbour
    that a strength of 1 exchanges in a step, noise included, ``(59, n)``. A bounded share keeps every quantity positive.
    """
    thinner = np.minimum(column.mass[:-1], column.mass[1:])
    exchanged = {name: thinner * np.minimum(factors[name] * strength, _LARGEST_COURANT) for name in MIXED}
    for mass in exchanged.values():
        mass[:TOP] = 0.0
    static = HEAT_CAPACITY * column.temperature + column.geopotential
    column.temperature += _divergence(column, exchanged["static"], static) / HEAT_CAPACITY
    for group, names in (("water", ("vapour",)), ("cloud", ("cloud", "ice")), ("wind", ("zonal", "meridional"))):
        for name in names:
            value = getattr(column, name)
            value += _divergence(column, exchanged[group], value)


def _divergence(column: Column, exchanged: np.ndarray, value: np.ndarray) -> np.ndarray:
    flux = exchanged * (value[1:] - value[:-1])
    change = np.zeros_like(value)
    change[:-1] += flux
    change[1:] -= flux
    return change / column.mass
