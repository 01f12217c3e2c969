"""The state of a set of columns while the synthetic physics works on it, and the accounts that it keeps.

Profiles are ``(60, n)`` from the top down, interface fields ``(59, n)`` between neighbouring layers, surface fields ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from leapray.climsim.grid import layer_mass
from leapray.climsim.schema import NOT_MOVED, STEP_SECONDS
from leapray.climsim.synthetic.thermo import GAS_DRY, HEAT_CAPACITY, LATENT_FUSION, LATENT_VAPOUR, saturation

TOP = NOT_MOVED.stop
"""First level where the physics moves water and momentum; above it only radiation acts, and these targets are constant in the real data."""


@dataclass
class Column:
    """Temperature, water and wind as the processes change them one after another.

    ``condensed`` and ``frozen`` count the net water, in kg/m2 over the step, that left the vapour and that turned from liquid to ice.
    """

    pressure: np.ndarray
    mass: np.ndarray
    geopotential: np.ndarray
    temperature: np.ndarray
    vapour: np.ndarray
    cloud: np.ndarray
    ice: np.ndarray
    zonal: np.ndarray
    meridional: np.ndarray
    condensed: np.ndarray = field(init=False)
    frozen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.condensed = np.zeros(self.mass.shape[1])
        self.frozen = np.zeros(self.mass.shape[1])

    @classmethod
    def of(cls, inputs: Mapping[str, np.ndarray]) -> Column:
        """Copies of the state of an mli file; ``cloud`` is liquid and ice together."""
        pressure, temperature = inputs["state_pmid"], inputs["state_t"]
        thickness = GAS_DRY * temperature[1:] * np.log(pressure[1:] / pressure[:-1])
        above_ground = GAS_DRY * temperature[-1:] * np.log(inputs["state_ps"] / pressure[-1:])
        geopotential = np.concatenate([np.cumsum(thickness[::-1], axis=0)[::-1] + above_ground, above_ground])
        return cls(
            pressure=pressure,
            mass=np.ascontiguousarray(layer_mass(inputs["state_ps"]).T),
            geopotential=geopotential,
            temperature=temperature.copy(),
            vapour=inputs["state_q0001"].copy(),
            cloud=inputs["state_q0002"] + inputs["state_q0003"],
            ice=inputs["state_q0003"].copy(),
            zonal=inputs["state_u"].copy(),
            meridional=inputs["state_v"].copy(),
        )

    @property
    def relative_humidity(self) -> np.ndarray:
        return self.vapour / saturation(self.temperature, self.pressure)

    def condense(self, levels: slice, amount: np.ndarray) -> None:
        """Turn vapour into liquid cloud, in kg/kg of the layers; negative amounts evaporate it."""
        self.vapour[levels] -= amount
        self.cloud[levels] += amount
        self.heat_by_vapour(levels, amount * self.mass[levels])

    def heat_by_vapour(self, levels: slice | int, amount: np.ndarray) -> None:
        """Account for water in kg/m2 that left the vapour of the layers, and warm them by its latent heat."""
        self.temperature[levels] += LATENT_VAPOUR / HEAT_CAPACITY * amount / self.mass[levels]
        self.condensed += np.sum(np.atleast_2d(amount), axis=0)

    def heat_by_ice(self, levels: slice | int, amount: np.ndarray) -> None:
        """Account for water in kg/m2 that froze in the layers, and warm them by its latent heat."""
        self.temperature[levels] += LATENT_FUSION / HEAT_CAPACITY * amount / self.mass[levels]
        self.frozen += np.sum(np.atleast_2d(amount), axis=0)

    def latent_heating(self) -> np.ndarray:
        """Mean latent heating of the column over the step so far, W/m2."""
        return (LATENT_VAPOUR * self.condensed + LATENT_FUSION * self.frozen) / STEP_SECONDS
