"""A target as a reader knows it: its words, and a unit in which its numbers are neither tiny nor huge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leapray.climsim.schema import Targets, Variable

_SECONDS_A_DAY = 86400
_DAILY = {
    "K/s": ("K/day", _SECONDS_A_DAY),
    "kg/kg/s": ("g/kg/day", 1e3 * _SECONDS_A_DAY),
    "m/s/s": ("m/s/day", _SECONDS_A_DAY),
    "m/s": ("mm/day", 1e3 * _SECONDS_A_DAY),
}
_SYMBOLS = {
    "t": "dT/dt",
    "q0001": "dq/dt",
    "q0002": r"d$q_\mathrm{liquid}$/dt",
    "q0003": r"d$q_\mathrm{ice}$/dt",
    "u": "du/dt",
    "v": "dv/dt",
}
"""As matplotlib writes them."""


@dataclass(frozen=True)
class Quantity:
    """How a target variable is shown: a number in the target's unit times ``factor`` is one in ``unit``.

    ``columns`` are its place among the targets, ``learned`` which of these are learned.
    """

    name: str
    words: str
    symbol: str
    unit: str
    factor: float
    columns: slice
    learned: np.ndarray

    def of_learned(self, values: np.ndarray) -> np.ndarray:
        """Its part of values of all targets ``(..., t)``, NaN where it is not learned."""
        return np.where(self.learned, values[..., self.columns], np.nan)


def _quantity(targets: Targets, variable: Variable) -> Quantity:
    unit, factor = _DAILY.get(variable.units, (variable.units, 1.0))
    short = variable.name.split("_")[-1]
    words = variable.long_name.removeprefix("tendency of ").removesuffix(" at the surface")
    columns = targets[variable.name]
    symbol, unit = _SYMBOLS.get(short, short), unit.replace("W/m2", "W/m²")
    return Quantity(variable.name, words, symbol, unit, factor, columns, targets.learned[columns])


def profiles(targets: Targets) -> list[Quantity]:
    """The tendencies among the targets."""
    return [_quantity(targets, variable) for variable in targets.profiles]


def scalars(targets: Targets) -> list[Quantity]:
    """The scalars at the surface among the targets."""
    return [_quantity(targets, variable) for variable in targets.scalars]
