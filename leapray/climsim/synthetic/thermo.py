"""Constants and saturation of the synthetic physics: temperatures in K, pressures in Pa, mixing ratios in kg/kg, any shapes."""

from __future__ import annotations

import numpy as np

HEAT_CAPACITY = 1004.64
LATENT_VAPOUR = 2.501e6
LATENT_FUSION = 3.337e5
GAS_DRY = 287.0
GAS_VAPOUR = 461.0
STEFAN_BOLTZMANN = 5.670374e-8
MELTING = 273.16
ALL_ICE = 253.16
"""Below this temperature no cloud liquid is left after a step, as in E3SM-MMF."""


def liquid_fraction(temperature: np.ndarray) -> np.ndarray:
    """Share of cloud water that is liquid, ``clip((T - 253.16) / 20, 0, 1)``, as in E3SM-MMF."""
    return np.clip((temperature - ALL_ICE) / (MELTING - ALL_ICE), 0.0, 1.0)


def saturation(temperature: np.ndarray, pressure: np.ndarray) -> np.ndarray:
    """Saturation specific humidity over liquid and ice mixed by :func:`liquid_fraction` (Magnus form, WMO 2008)."""
    celsius = temperature - 273.15
    ice = 611.2 * np.exp(22.46 * celsius / (celsius + 272.62))
    liquid = 611.2 * np.exp(17.62 * celsius / (celsius + 243.12))
    vapour_pressure = ice + liquid_fraction(temperature) * (liquid - ice)
    return GAS_DRY / GAS_VAPOUR * np.minimum(vapour_pressure / pressure, 0.5)
