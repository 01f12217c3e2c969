"""Moist convection of the synthetic physics: one entraining plume that the lowest levels feed and that acts on the whole column.

A bulk mass-flux scheme (Arakawa and Schubert 1974 in its simplest form): the plume takes air near the ground, mixes with its
surroundings on the way up, rains out what condenses and leaves where it is no longer buoyant; the surroundings sink in return.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leapray.climsim.schema import STEP_SECONDS
from leapray.climsim.synthetic.column import Column
from leapray.climsim.synthetic.thermo import GAS_DRY, GAS_VAPOUR, HEAT_CAPACITY, LATENT_VAPOUR, saturation

_SOURCE = {58: 0.4, 57: 0.35, 56: 0.25}
"""Share of the plume's air taken from each of the lowest levels."""
_HIGHEST = 20
_TAPER = 15.0
_ENTRAINMENT = 0.06
_RAINED = 0.85
_MOMENTUM = 0.15
"""Share of the exchange that winds take part in; pressure gradients across the plume undo the rest (Gregory et al. 1997)."""
_TRIGGER_ENERGY, _AMPLE_ENERGY = 15.0, 400.0
_MOST_OF_A_LAYER = 0.35


@dataclass
class _Plume:
    """What the plume does in each layer, per unit of mass flux at its base: each ``(60, n)``."""

    taken: np.ndarray
    left: np.ndarray
    flux_above: np.ndarray
    condensate: np.ndarray
    static: np.ndarray
    vapour: np.ndarray
    zonal: np.ndarray
    meridional: np.ndarray


def convect(column: Column, strength: float, drive: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Let the plume act for one step; returns the rain it makes in each layer, kg/m2 ``(60, n)``.

    ``strength`` is the flux at the base, kg/m2/s, for each J/kg of the plume's energy; ``drive`` ``(n,)`` is the surface's push on
    it (1 on average), ``noise`` ``(n,)`` the positive sub-grid factor.
    """
    plume, energy = _rise(column)
    base = strength * _AMPLE_ENERGY * np.log1p(np.maximum(energy - _TRIGGER_ENERGY, 0.0) / _AMPLE_ENERGY) * drive * noise
    busiest = (plume.taken + np.vstack([plume.flux_above[1:], np.zeros((1, base.size))])) / column.mass
    base = np.minimum(base, _MOST_OF_A_LAYER / STEP_SECONDS / busiest.max(axis=0))
    amount = base * STEP_SECONDS / column.mass
    static = HEAT_CAPACITY * column.temperature + column.geopotential
    column.temperature += amount * _exchange(plume, static, plume.static) / HEAT_CAPACITY
    column.vapour += amount * _exchange(plume, column.vapour, plume.vapour)
    column.cloud += amount * _sinking(plume, column.cloud)
    column.ice += amount * _sinking(plume, column.ice)
    column.zonal += _MOMENTUM * amount * _exchange(plume, column.zonal, plume.zonal)
    column.meridional += _MOMENTUM * amount * _exchange(plume, column.meridional, plume.meridional)
    made = plume.condensate * base * STEP_SECONDS
    column.condensed += made.sum(axis=0)
    column.cloud += made * (1 - _RAINED) / column.mass
    return made * _RAINED


def _rise(column: Column) -> tuple[_Plume, np.ndarray]:
    """Follow a plume of unit mass flux upwards; also its energy: the work of buoyancy on it, J/kg ``(n,)``."""
    plume = _Plume(*(np.zeros_like(column.mass) for _ in range(8)))
    static = HEAT_CAPACITY * column.temperature + column.geopotential
    saturated = saturation(column.temperature, column.pressure)
    steepness = saturated * LATENT_VAPOUR / (GAS_VAPOUR * column.temperature**2)
    log_thickness = np.log(column.pressure[1:] / column.pressure[:-1])
    flux, energy = np.zeros(column.mass.shape[1]), np.zeros(column.mass.shape[1])
    carried = {"static": energy, "vapour": energy, "zonal": energy, "meridional": energy}
    around = {"static": static, "vapour": column.vapour, "zonal": column.zonal, "meridional": column.meridional}
    for level in range(max(_SOURCE), _HIGHEST - 1, -1):
        taken = _SOURCE[level] + 0 * flux if level in _SOURCE else _ENTRAINMENT * flux
        share = taken / (flux + taken + 1e-300)
        carried = {name: value + share * (around[name][level] - value) for name, value in carried.items()}
        flux = flux + taken
        stays = 1.0
        if level not in _SOURCE:
            warmer = (carried["static"] - static[level]) / HEAT_CAPACITY
            excess = carried["vapour"] - saturated[level] - steepness[level] * warmer
            condensed = np.clip(excess / (1 + LATENT_VAPOUR / HEAT_CAPACITY * steepness[level]), 0, 0.5 * carried["vapour"])
            carried["vapour"] = carried["vapour"] - condensed
            carried["static"] = carried["static"] + LATENT_VAPOUR * condensed
            plume.condensate[level] = condensed * flux
            moister = carried["vapour"] - column.vapour[level]
            buoyancy = warmer + LATENT_VAPOUR / HEAT_CAPACITY * condensed + 0.61 * column.temperature[level] * moister
            energy = energy + GAS_DRY * log_thickness[level - 1] * flux * np.clip(buoyancy, -2.0, 6.0)
            stays = (0.5 + 0.5 * np.tanh((buoyancy + 1.0) / 0.9)) * min((level - _HIGHEST) / _TAPER, 1.0)
        plume.taken[level] = taken
        plume.left[level] = flux * (1 - stays)
        flux = flux * stays
        plume.flux_above[level] = flux
        for name, value in carried.items():
            getattr(plume, name)[level] = value
    return plume, energy


def _exchange(plume: _Plume, around: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Change of a layer's content per unit of base flux: what the plume leaves and takes, and what sinks in from above and out below."""
    return plume.left * inside - plume.taken * around + _sinking(plume, around)


def _sinking(plume: _Plume, around: np.ndarray) -> np.ndarray:
    change = np.zeros_like(around)
    sinking = plume.flux_above[1:] * around[:-1]
    change[1:] += sinking
    change[:-1] -= sinking
    return change
