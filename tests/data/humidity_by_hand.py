"""Saturation specific humidity in kg/kg, written from ClimSim's definition case by case."""

import numpy as np


def saturation(t: float, p: float) -> float:
    """Over liquid, over ice, over very cold ice; blended between 253.16 and 273.16 K."""
    water = [-0.976195544e-15, -0.952447341e-13, 0.640689451e-10, 0.206739458e-7, 0.302950461e-5, 0.264847430e-3]
    water += [0.142986287e-1, 0.443987641, 6.11239921]
    frost = [0.252751365e-14, 0.146898966e-11, 0.385852041e-9, 0.602588177e-7, 0.615021634e-5, 0.420895665e-3]
    frost += [0.188439774e-1, 0.503160820, 6.11147274]
    over_water = 100 * np.polyval(water, max(t - 273.16, -80))
    if t > 273.15:
        over_ice = over_water
    elif t > 185:
        over_ice = 100 * np.polyval(frost, t - 273.16)
    else:
        over_ice = 100 * np.polyval([7.48215e-07, 0.000151069, 0.00763685], max(t - 273.16, -100))
    if t > 273.16:
        vapour_pressure = over_water
    elif t < 253.16:
        vapour_pressure = over_ice
    else:
        vapour_pressure = (t - 253.16) / 20 * over_water + (273.16 - t) / 20 * over_ice
    return 287 * vapour_pressure / (461 * p)
