"""Where the columns of a synthetic world are, and what lies under them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leapray.climsim.grid import Grid, low_res_grid
from leapray.climsim.row_keys import KINDS
from leapray.climsim.synthetic.weather import WaveField
from leapray.errors import UserError

_GEOGRAPHY_SEED = (2023, 4)
_HIGHEST_LAND = 3500.0


@dataclass(frozen=True)
class Place:
    """Columns of a world, each field ``(n,)``: latitude and longitude in radians, land fraction, height of the land in m."""

    latitude: np.ndarray
    longitude: np.ndarray
    land: np.ndarray
    height: np.ndarray

    @property
    def sine(self) -> np.ndarray:
        return np.sin(self.latitude)

    @property
    def points(self) -> np.ndarray:
        """Unit vectors ``(n, 3)``."""
        return _unit_vectors(self.latitude, self.longitude)


def make_place(kind: str, columns: int | None = None) -> Place:
    """The columns of a kind, or evenly spread ones if fewer are asked for.

    Raises UserError for an unknown kind or a number of columns that the kind cannot have.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    full = KINDS[kind].columns
    count = full if columns is None else columns
    if not 1 <= count <= full:
        raise UserError(f"columns = {count} is not between 1 and {full}, the number of columns of {kind}")
    grid = _fibonacci_sphere(count) if kind == "high-res" else low_res_grid()
    chosen = np.linspace(0, len(grid.latitude) - 1, count).round().astype(int)
    latitude, longitude = np.radians(grid.latitude[chosen]), np.radians(grid.longitude[chosen])
    if kind == "aqua-planet":
        return Place(latitude, longitude, np.zeros(count), np.zeros(count))
    continents, mountains = WaveField(_unit_vectors(latitude, longitude), 2, _GEOGRAPHY_SEED, length=0.55, days=1, waves=40).at(0)
    land = np.clip((continents + 0.9 * (np.sin(latitude) < -0.93) - 0.62) / 0.6 + 0.5, 0, 1)
    height = _HIGHEST_LAND * land**2 * np.clip(0.1 + 0.16 * np.maximum(mountains, 0) ** 1.5, 0, 1)
    return Place(latitude, longitude, land, height)


def _unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    level = np.cos(latitude)
    return np.stack([level * np.cos(longitude), level * np.sin(longitude), np.sin(latitude)], axis=1)


def _fibonacci_sphere(count: int) -> Grid:
    """Quasi-uniform points of equal area, along a spiral from south to north."""
    index = np.arange(count) + 0.5
    latitude = np.degrees(np.arcsin(2 * index / count - 1))
    longitude = (index * 180 * (3 - np.sqrt(5))) % 360
    return Grid(latitude, longitude, np.full(count, 4 * np.pi / count))
