"""Shortwave and longwave radiation of the synthetic physics: a few bands, absorbed and emitted layer by layer through the whole column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from leapray.climsim.grid import GRAVITY, REFERENCE_PRESSURE
from leapray.climsim.schema import LEVELS, STEP_SECONDS
from leapray.climsim.synthetic.column import Column
from leapray.climsim.synthetic.thermo import HEAT_CAPACITY, STEFAN_BOLTZMANN

_LONGWAVE_BANDS = np.array([0.28, 0.42, 0.30])[:, None]
"""Shares of black-body emission: window, water vapour, well-mixed gases."""
_ULTRAVIOLET = 0.055
_SOLAR_BANDS = np.array([0.40, 0.335, 0.21])[:, None]
"""Shares of sunlight below the ozone: visible, weakly and strongly vapour-absorbing near infrared."""
_VAPOUR_ABSORPTION = np.array([0.0, 0.006, 0.12])[:, None]
_RAYLEIGH = np.array([0.09, 0.02, 0.02])[:, None]
_LIQUID_SCATTERING, _ICE_SCATTERING = 4.5, 2.2
_BACKSCATTER = 0.2


@dataclass(frozen=True)
class Radiation:
    """Heating rate ``(60, n)`` in K/s, fluxes at the surface ``(n,)`` in W/m2 by mlo name, and the column's net gain in W/m2."""

    heating: np.ndarray
    fluxes: dict[str, np.ndarray]
    convergence: np.ndarray


def radiate(
    column: Column, inputs: Mapping[str, np.ndarray], ozone_absorption: np.ndarray, well_mixed: np.ndarray, cover: np.ndarray
) -> Radiation:
    """Radiation of one step.

    ``ozone_absorption`` (m2 per kg of air and unit mixing ratio) and ``well_mixed`` (m2/kg) are per level ``(60,)``;
    ``cover`` ``(n,)`` is the sub-grid factor on the optical depth of clouds.
    """
    absorbed, fluxes = _shortwave(column, inputs, ozone_absorption, cover)
    gained, downward = _longwave(column, inputs["cam_in_LWUP"], well_mixed, cover)
    fluxes["cam_out_FLWDS"] = downward
    total = absorbed + gained
    return Radiation(total / (HEAT_CAPACITY * column.mass), fluxes, total.sum(axis=0))


def _shortwave(
    column: Column, inputs: Mapping[str, np.ndarray], ozone_absorption: np.ndarray, cover: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Power absorbed per layer, W/m2 ``(60, n)``, and the downward fluxes at the surface with the net flux that the albedos leave.

    Light that clouds and air scatter back is lost to space; what the ground reflects is not absorbed again. Night columns are passed over.
    """
    day = np.flatnonzero(inputs["pbuf_SOLIN"] > 0)
    sun, cosine = inputs["pbuf_SOLIN"][day], np.maximum(inputs["pbuf_COSZRS"][day], 0.04)
    cloud, ice, mass, vapour = (field[:, day] for field in (column.cloud, column.ice, column.mass, column.vapour))
    scattering = (_LIQUID_SCATTERING * (cloud - ice) + _ICE_SCATTERING * ice) * mass * cover[day]
    vapour_depth = _VAPOUR_ABSORPTION * (vapour * mass)[:, None]
    air_depth = _RAYLEIGH * (mass * (GRAVITY / REFERENCE_PRESSURE))[:, None]
    depth = (scattering[:, None] + air_depth) / cosine
    direct_left, beam_kept, diffuse_kept = np.exp(-depth), np.exp(-vapour_depth / cosine), np.exp(-1.66 * vapour_depth)
    reflected = 1 / (1 + _BACKSCATTER * 1.66 * cosine * depth)
    ozone_kept = np.exp(-ozone_absorption[:, None] * inputs["pbuf_ozone"][:, day] * mass / cosine)
    absorbed = np.zeros_like(column.mass)
    ultraviolet, direct, diffuse = _ULTRAVIOLET * sun, _SOLAR_BANDS * sun, np.zeros((3, len(sun)))
    for level in range(LEVELS):
        taken = ultraviolet * (1 - ozone_kept[level])
        ultraviolet = ultraviolet - taken
        straight, scattered = direct * beam_kept[level], diffuse * diffuse_kept[level]
        absorbed[level, day] = taken + (direct - straight + diffuse - scattered).sum(axis=0)
        direct = straight * direct_left[level]
        diffuse = scattered * reflected[level] + (straight - direct) * (1 - _BACKSCATTER)
    surface = {
        "SOLS": direct[0] + 0.5 * ultraviolet,
        "SOLL": direct[1] + direct[2],
        "SOLSD": diffuse[0] + 0.5 * ultraviolet,
        "SOLLD": diffuse[1] + diffuse[2],
    }
    fluxes = {f"cam_out_{name}": np.zeros_like(cover) for name in surface}
    for name, flux in surface.items():
        fluxes[f"cam_out_{name}"][day] = flux
    albedos = {"SOLS": "ASDIR", "SOLL": "ALDIR", "SOLSD": "ASDIF", "SOLLD": "ALDIF"}
    net = sum(fluxes[f"cam_out_{flux}"] * (1 - inputs[f"cam_in_{albedo}"]) for flux, albedo in albedos.items())
    return absorbed, fluxes | {"cam_out_NETSW": np.asarray(net)}


def _longwave(column: Column, upward: np.ndarray, well_mixed: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power gained per layer, W/m2 ``(60, n)``, and the downward flux at the surface.

    Each layer of emissivity ``1 - exp(-depth)`` takes from both streams and gives to both.
    """
    vapour_path = column.vapour * column.mass
    clouds = (30.0 * (column.cloud - column.ice) + 15.0 * column.ice) * column.mass * cover
    broadened = np.sqrt(column.pressure / REFERENCE_PRESSURE)
    depth = np.stack(
        [
            2.5 * vapour_path * column.vapour + clouds,
            1.5 * vapour_path * broadened + clouds,
            well_mixed[:, None] * column.mass + clouds,
        ],
        axis=1,
    )
    emissivity = -np.expm1(-1.66 * depth)
    emission = _LONGWAVE_BANDS * (STEFAN_BOLTZMANN * column.temperature**4)[:, None]
    gained = np.zeros_like(depth)
    down, up = np.zeros_like(depth[0]), _LONGWAVE_BANDS * upward
    for level in range(LEVELS):
        exchange = emissivity[level] * (down - emission[level])
        gained[level] += exchange
        down = down - exchange
    for level in reversed(range(LEVELS)):
        exchange = emissivity[level] * (up - emission[level])
        gained[level] += exchange
        up = up - exchange
    return gained.sum(axis=1), down.sum(axis=0)


def radiation_step(column: Column, radiation: Radiation) -> None:
    """Warm the column by a step of radiation."""
    column.temperature += radiation.heating * STEP_SECONDS
