"""A target as a reader knows it: its words, and a unit in which its numbers are neither tiny nor huge."""

from __future__ import annotations

from dataclasses import dataclass

from leapray.climsim.schema import TARGETS, Variable

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
    """How a target variable is shown: a number in the schema's unit times ``factor`` is one in ``unit``."""

    name: str
    words: str
    symbol: str
    unit: str
    factor: float

    @property
    def columns(self) -> slice:
        """Its place among the 368 targets."""
        return TARGETS[self.name]


def _quantity(variable: Variable) -> Quantity:
    unit, factor = _DAILY.get(variable.units, (variable.units, 1.0))
    short = variable.name.split("_")[-1]
    words = variable.long_name.removeprefix("tendency of ").removesuffix(" at the surface")
    return Quantity(variable.name, words, _SYMBOLS.get(short, short), unit.replace("W/m2", "W/m²"), factor)


PROFILES = tuple(map(_quantity, TARGETS.profiles))
SCALARS = tuple(map(_quantity, TARGETS.scalars))
