"""Clouds and precipitation of the synthetic physics: condensation, evaporation, rain out, and the fall of rain and snow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leapray.climsim.schema import LEVELS, STEP_SECONDS
from leapray.climsim.synthetic.column import TOP, Column
from leapray.climsim.synthetic.thermo import HEAT_CAPACITY, LATENT_VAPOUR, MELTING, liquid_fraction, saturation

_ACTIVE = slice(TOP, LEVELS)
_IDLE, _LIVELY = 200.0, 60.0
"""Phase changes stop at 200 K and reach full speed 60 K above: colder ice clouds hardly trade with the little vapour around them."""
_SETTLING = 0.6
_RAIN_OUT, _MOST_RAIN = 0.08, 0.3
_RAIN_EVAPORATION = 0.10
_DRIZZLE = 0.02
"""Rain of less than this, kg/m2 in a step, falls in small drops that evaporate faster, so that many columns stay dry."""
WATER_DENSITY = 1000.0


@dataclass(frozen=True)
class CloudScheme:
    """Coefficients per level ``(60,)``: mean cloud water and what moist air holds, in kg/kg, and the speed of change per step.

    ``critical`` is the relative humidity below which air is clear after a step.
    """

    mean: np.ndarray
    typical: np.ndarray
    rate: np.ndarray
    critical: np.ndarray


@dataclass(frozen=True)
class Precipitation:
    """Liquid-water equivalent at the ground in m/s, each ``(n,)``: rain and snow together, and the snow in it."""

    total: np.ndarray
    snow: np.ndarray


def form_clouds(
    column: Column, scheme: CloudScheme, turbulence: np.ndarray, growth_noise: np.ndarray, loss_noise: np.ndarray
) -> np.ndarray:
    """Let ice settle, condense where air is moist and turbulent, and evaporate cloud where air is dry.

    ``turbulence`` ``(60, n)`` is the strength of mixing, the noises ``(60, n)`` are positive sub-grid factors. Returns where air is
    clear after the step, ``(60, n)``: what cannot evaporate there has to rain out.
    """
    _settle(column, np.minimum(_SETTLING * scheme.rate[:, None] * loss_noise, 0.7))
    humidity = column.relative_humidity[_ACTIVE]
    moist = np.clip((humidity - scheme.critical[_ACTIVE, None]) / 0.08, 0.0, 3.0)
    stirred = 0.5 + 0.5 * np.minimum(turbulence[_ACTIVE], 4.0)
    wanted = scheme.typical[_ACTIVE, None] * moist * stirred * growth_noise[_ACTIVE]
    rate = scheme.rate[_ACTIVE, None] * np.clip((column.temperature[_ACTIVE] - _IDLE) / _LIVELY, 0.0, 1.0) ** 2
    cloud, vapour = column.cloud[_ACTIVE], column.vapour[_ACTIVE]
    room = vapour * np.maximum(1.0 / humidity - 1.0, 0.0)
    growth = np.minimum(np.minimum(rate, 0.9) * np.maximum(wanted - cloud, 0.0), 0.2 * vapour)
    dryness = np.maximum(1.0 - humidity, 0.0)
    loss = -np.expm1(-2.0 * rate * dryness * loss_noise[_ACTIVE]) * np.maximum(cloud - wanted, 0.0)
    column.condense(_ACTIVE, np.where(moist > 0.0, growth - loss, -np.minimum(cloud, room)))
    clear = np.zeros(column.cloud.shape, dtype=bool)
    clear[_ACTIVE] = moist == 0.0
    return clear


def _settle(column: Column, share: np.ndarray) -> None:
    """Let a share of each layer's ice fall into the next; the lowest layer keeps what it has."""
    falling = share[TOP:-1] * np.minimum(column.ice, column.cloud)[TOP:-1] * column.mass[TOP:-1]
    for value in (column.ice, column.cloud):
        value[TOP:-1] -= falling / column.mass[TOP:-1]
        value[TOP + 1 :] += falling / column.mass[TOP + 1 :]


def precipitate(column: Column, scheme: CloudScheme, convective: np.ndarray, noise: np.ndarray, clear: np.ndarray) -> Precipitation:
    """Rain out clouds, split what stays into liquid and ice, and let rain and snow fall, melt and evaporate on their way.

    ``convective`` ``(60, n)`` is rain that the plume made, kg/m2; ``noise`` ``(60, n)`` the positive sub-grid factor on rain out.
    Where air is ``clear``, ``(60, n)``, all of the cloud rains out.
    """
    liquid = liquid_fraction(column.temperature)
    made = np.zeros_like(column.cloud)
    cloud = column.cloud[_ACTIVE]
    share = -_MOST_RAIN * np.expm1(-_RAIN_OUT / _MOST_RAIN * noise[_ACTIVE] * cloud / (3.0 * scheme.mean[_ACTIVE, None]))
    made[_ACTIVE] = np.where(clear[_ACTIVE], cloud, share * cloud)
    column.cloud -= made
    falling = made * column.mass + convective
    snow_made = falling * (1 - liquid)
    ice = column.ice.copy()
    ice[_ACTIVE] = (column.cloud * (1 - liquid))[_ACTIVE]
    column.heat_by_ice(slice(0, LEVELS), (ice - column.ice) * column.mass + snow_made)
    column.ice = ice
    return _fall(column, falling - snow_made, snow_made)


def _fall(column: Column, rain_made: np.ndarray, snow_made: np.ndarray) -> Precipitation:
    """Carry rain and snow, made per layer in kg/m2, down to the ground."""
    rain, snow = np.zeros(column.mass.shape[1]), np.zeros(column.mass.shape[1])
    for level in range(TOP, LEVELS):
        rain, snow = rain + rain_made[level], snow + snow_made[level]
        melted = snow * np.clip((column.temperature[level] - MELTING) / 5.0, 0, 1)
        snow, rain = snow - melted, rain + melted
        saturated = saturation(column.temperature[level], column.pressure[level])
        deficit = np.maximum(saturated - column.vapour[level], 0.0)
        room = 0.3 * deficit * column.mass[level] / (1 + LATENT_VAPOUR / HEAT_CAPACITY * saturated / 15.0)
        evaporated = -np.expm1(-_RAIN_EVAPORATION * deficit / saturated) * np.sqrt(rain * (rain + _DRIZZLE))
        evaporated = np.minimum(np.minimum(evaporated, rain), room)
        rain = rain - evaporated
        column.vapour[level] += evaporated / column.mass[level]
        column.heat_by_ice(level, -melted)
        column.heat_by_vapour(level, -evaporated)
    return Precipitation((rain + snow) / (WATER_DENSITY * STEP_SECONDS), snow / (WATER_DENSITY * STEP_SECONDS))
