"""Saturation as ClimSim and its host model define it for relative humidity, as scriptable float64 torch.

Relative humidity is ``q1 / saturation(T, p)``, and so ``q1 = RH * saturation(T, p)``, with q1 in kg/kg, T in K and p in Pa.
"""

import torch
from torch import Tensor, nn

GAS_DRY, GAS_VAPOUR = 287.0, 461.0
"""J/(kg K)."""
TRIPLE, ALL_ICE, FROZEN, COLDEST_ICE = 273.16, 253.16, 273.15, 185.0
"""K: all liquid from the first, all ice up to the second; below the third over ice, below the fourth its continuation."""
HECTOPASCAL = 100.0
LIQUID = (
    6.11239921,
    0.443987641,
    0.142986287e-1,
    0.264847430e-3,
    0.302950461e-5,
    0.206739458e-7,
    0.640689451e-10,
    -0.952447341e-13,
    -0.976195544e-15,
)
ICE = (
    6.11147274,
    0.503160820,
    0.188439774e-1,
    0.420895665e-3,
    0.615021634e-5,
    0.602588177e-7,
    0.385852041e-9,
    0.146898966e-11,
    0.252751365e-14,
)
"""hPa by powers of T - 273.16 K, the constant first (Flatau, Walko and Cotton 1992)."""
COLD_ICE = (0.00763685, 0.000151069, 7.48215e-07)
LIQUID_LOWEST, COLD_ICE_LOWEST = -80.0, -100.0
"""K from 273.16 K: no polynomial is taken below these."""


class SaturationHumidity(nn.Module):
    """Saturation specific humidity over liquid and ice, blended between 253.16 and 273.16 K.

    Formulas and coefficients are those of ClimSim's ``data_utils.py`` (``eliq``, ``eice``, ``state_rh``) and of the model that is
    coupled (``tom_esat`` in E3SM's ``climsim.F90``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.triple, self.all_ice, self.frozen, self.coldest_ice = TRIPLE, ALL_ICE, FROZEN, COLDEST_ICE
        self.liquid_lowest, self.cold_ice_lowest = LIQUID_LOWEST, COLD_ICE_LOWEST
        self.liquid, self.ice, self.cold_ice = list(LIQUID), list(ICE), list(COLD_ICE)
        self.gases = GAS_DRY / GAS_VAPOUR * HECTOPASCAL

    def forward(self, t: Tensor, p: Tensor) -> Tensor:
        """kg/kg for temperatures in K and pressures in Pa of the same shape, float64."""
        x = t - self.triple
        liquid = _polynomial(self.liquid, x.clamp_min(self.liquid_lowest))
        cold = _polynomial(self.cold_ice, x.clamp_min(self.cold_ice_lowest))
        ice = torch.where(t > self.coldest_ice, _polynomial(self.ice, x), cold)
        ice = torch.where(t > self.frozen, liquid, ice)
        share = ((t - self.all_ice) / (self.triple - self.all_ice)).clamp(0.0, 1.0)
        return self.gases * (share * liquid + (1.0 - share) * ice) / p


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    """Horner's scheme, the constant first."""
    value = torch.zeros_like(x)
    for power in range(len(coefficients) - 1, -1, -1):
        value = value * x + coefficients[power]
    return value
