"""Water in the inputs of a synthetic world: vapour, clouds, and the traces that real data has where there are none.

Clouds are dense where air is moist, and nearly gone where it is dry. Above the highest liquid and in the stratosphere, traces that
vertical transport brings fall off by more than four decades per level, down to 1e-57 kg/kg for liquid, as in real low-res files.
Profiles are ``(60, n)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from leapray.climsim.schema import LEVELS, NOT_MOVED
from leapray.climsim.synthetic.thermo import ALL_ICE, liquid_fraction


def knots(**values: float) -> np.ndarray:
    """``(60,)`` interpolated between values given at levels, ``l12=0.5``."""
    levels = [int(key[1:]) for key in values]
    return np.interp(np.arange(LEVELS), levels, list(values.values()))[:, None]


HUMIDITY_TOP = 20
"""First level whose humidity is a relative humidity; above it is a nearly passive trace."""
HAZE_TOP, _CLOUD_TOP = NOT_MOVED.stop, 16
"""First levels where ice settles out of saturated air, and where weather makes clouds; above is a trace that the physics never touches."""
_DENSEST = 3e-4
"""The most cloud that air may hold, kg/kg."""
_CLOUD_WIDTH = knots(l17=4.5, l20=3.8, l24=2.8, l30=2.0, l36=1.6, l45=1.3, l59=1.6)
"""Spread of the logarithm of cloud: high clouds are rare and then dense."""
_DRY_AIR = knots(l17=25.0, l20=20.0, l24=11.0, l30=8.0)
"""How steeply cloud falls off in unsaturated air: as ``exp(-8 (1 - RH))`` in the troposphere."""
_HAZE = 0.5
"""Share of the vapour above saturation that hangs in the stratosphere as ice, up to a tenth of saturation; more falls out."""
_CARRIED = np.log(10.0) * 4.4
"""Vertical transport carries about ``10**-4.4`` of a layer's condensate into the next layer, so that traces fall off to nothing."""
_OUTLASTING = 2.5
"""Liquid that is carried into colder air outlasts a decade for every 2.5 K below the temperature where all freezes."""
_SMALLEST_LIQUID, _SMALLEST_ICE = 1e-57, 1e-32
"""Less than this, in kg/kg, is none."""


@dataclass(frozen=True)
class Scales:
    """What makes a kind's moisture follow the figures, each ``(60,)``: the logit of relative humidity, and cloud water in kg/kg."""

    humidity: np.ndarray
    cloud: np.ndarray


@dataclass(frozen=True)
class Patterns:
    """What the scales act on, ``(60, n)``: vapour at saturation (above ``HUMIDITY_TOP`` the trace itself), saturation, humidity and cloud.

    ``top_liquid`` and ``top_ice`` ``(12, n)`` are the reservoirs above ``HAZE_TOP``, in kg/kg.
    """

    vapour: np.ndarray
    saturation: np.ndarray
    humidity: np.ndarray
    cloud: np.ndarray
    top_liquid: np.ndarray
    top_ice: np.ndarray


def cloud_pattern(humidity: np.ndarray, weather: np.ndarray) -> np.ndarray:
    """Cloud before its scale, from standard normal patterns of humidity and of cloud itself."""
    cloud = np.exp(_CLOUD_WIDTH * (0.7 * humidity + 0.714 * weather))
    cloud[:_CLOUD_TOP] = 0.0
    return cloud


def make_moisture(patterns: Patterns, scales: Scales, temperature: np.ndarray, trace: np.ndarray) -> dict[str, np.ndarray]:
    """Vapour, liquid and ice in kg/kg by mli name; ``trace`` is the standard normal pattern of what transport carries."""
    vapour = patterns.vapour * _relative_humidity(scales.humidity[:, None], patterns.humidity)
    surplus = np.zeros_like(vapour)
    aloft = slice(HAZE_TOP, HUMIDITY_TOP)
    surplus[aloft] = np.maximum(vapour - patterns.saturation, 0)[aloft]
    vapour -= surplus
    cloud = _cloud(patterns.cloud * _dried(vapour / patterns.saturation), scales.cloud[:, None])
    cloud += _HAZE * np.minimum(surplus, 0.2 * patterns.saturation)
    liquid = liquid_fraction(temperature) * cloud
    ice = cloud - liquid
    liquid[:HAZE_TOP], ice[:HAZE_TOP] = patterns.top_liquid, patterns.top_ice
    carried = np.exp(-_CARRIED + 0.7 * trace)
    cold = temperature - ALL_ICE
    outlasting = np.where(cold < 0, 0.2 * np.exp(np.log(10.0) / _OUTLASTING * np.minimum(cold, 0.0)), 0.0)
    liquid, ice = _carry(liquid, carried + outlasting, _SMALLEST_LIQUID), _carry(ice, carried, _SMALLEST_ICE)
    return {"state_q0001": vapour, "state_q0002": liquid, "state_q0003": ice}


def solve_scales(samples: Sequence[Patterns], vapour: np.ndarray, cloud: np.ndarray) -> Scales:
    """The scales with which vapour and cloud water have the wanted means ``(60,)`` over the samples."""

    def pooled(name: str) -> np.ndarray:
        return np.concatenate([getattr(sample, name) for sample in samples], axis=1)

    most, saturated, pattern = pooled("vapour"), pooled("saturation"), pooled("humidity")
    humidity = _bisect(lambda scale: most * _relative_humidity(scale, pattern), vapour, -12.0, 12.0)
    relative = most * _relative_humidity(humidity[:, None], pattern) / saturated
    shape = pooled("cloud") * _dried(relative)
    return Scales(humidity, np.exp(_bisect(lambda scale: _cloud(shape, np.exp(scale)), cloud, -80.0, 0.0)))


def _dried(relative: np.ndarray) -> np.ndarray:
    """Share of a cloud that air of a relative humidity keeps."""
    return np.exp(_DRY_AIR * np.minimum(relative - 1.0, 0.0))


def _cloud(pattern: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Cloud water in kg/kg, which saturates at the densest cloud."""
    amount = pattern * scale
    return amount / (1 + amount / _DENSEST)


def _carry(condensate: np.ndarray, share: np.ndarray, smallest: float) -> np.ndarray:
    """Add to each layer what vertical transport brings of its neighbours, up and then down; what is too small to be kept becomes 0.

    Above the highest liquid, and below the reservoir at the top, traces fall off by many decades per level.
    """
    for level in range(LEVELS - 2, HAZE_TOP - 1, -1):
        condensate[level] += share[level] * condensate[level + 1]
    for level in range(HAZE_TOP, LEVELS):
        condensate[level] += share[level] * condensate[level - 1]
    condensate[condensate < smallest] = 0.0
    return condensate


def _relative_humidity(scale: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Relative humidity between 0 and 1.1; 1 above the level where humidity begins, whose vapour is given whole."""
    relative = 1.1 / (1 + np.exp(-(scale + pattern)))
    relative[:HUMIDITY_TOP] = 1.0
    return relative


def _bisect(value: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Where the mean of a growing ``(60, n)`` function of ``(60, 1)`` equals what is wanted, ``(60,)``."""
    low, high = np.full((LEVELS, 1), lowest), np.full((LEVELS, 1), highest)
    for _ in range(30):
        middle = (low + high) / 2
        too_much = (value(middle).mean(axis=1) > wanted)[:, None]
        low, high = np.where(too_much, low, middle), np.where(too_much, middle, high)
    return middle[:, 0]
