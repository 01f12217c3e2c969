"""Hybrid levels, pressure, layer mass and the low-res grid (the tables lie in ``figures/``).

Shapes: n columns, 60 levels ordered from the model top down, 61 interfaces. Pressures in Pa, masses in kg/m2.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

from leapray.climsim.schema import Layout

REFERENCE_PRESSURE = 1e5
GRAVITY = 9.80616


@lru_cache
def figures(name: str) -> dict[str, tuple[str, ...]]:
    """A table of ``figures/`` as text by column, so that each reader takes the numbers it needs."""
    with (files("leapray.climsim") / "figures" / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: tuple(row[key] for row in rows) for key in rows[0]}


@dataclass(frozen=True)
class ColumnFigures:
    """Mean, standard deviation, minimum and maximum of each column of a layout, in its unit, each ``(c,)``."""

    mean: np.ndarray
    std: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


@lru_cache
def competition_columns(layout: Layout) -> ColumnFigures:
    """Statistics of a layout's columns over the 10 091 520 rows of the LEAP competition's ``train.csv`` (low-res, 0001-02 to 0008-01).

    Constant columns have a standard deviation of 0. Raises KeyError for a column that the competition does not have.
    """
    table = figures("competition_columns")
    place = {column: row for row, column in enumerate(table["column"])}
    rows = [place[column] for column in layout.columns]
    return ColumnFigures(*(np.array(table[key], dtype=np.float64)[rows] for key in ("mean", "std", "min", "max")))


@dataclass(frozen=True)
class HybridLevels:
    """Coefficients of ``p = a * 1e5 Pa + b * ps``: mid-layer ``(60,)`` and interface ``(61,)``."""

    a_mid: np.ndarray
    b_mid: np.ndarray
    a_interface: np.ndarray
    b_interface: np.ndarray


@lru_cache
def hybrid_levels() -> HybridLevels:
    table = {key: np.array(values, dtype=np.float64) for key, values in figures("levels").items()}
    interfaces = {name: np.append(table[f"{name}_top"], table[f"{name}_bottom"][-1]) for name in ("hyai", "hybi")}
    return HybridLevels(table["hyam"], table["hybm"], interfaces["hyai"], interfaces["hybi"])


def pressure(surface_pressure: np.ndarray) -> np.ndarray:
    """Mid-layer pressure ``(n, 60)`` from surface pressure ``(n,)``."""
    levels = hybrid_levels()
    return levels.a_mid * REFERENCE_PRESSURE + levels.b_mid * np.asarray(surface_pressure)[:, None]


def layer_mass(surface_pressure: np.ndarray) -> np.ndarray:
    """Mass of each layer ``dp / g``, ``(n, 60)``, from surface pressure ``(n,)``."""
    levels = hybrid_levels()
    interface = levels.a_interface * REFERENCE_PRESSURE + levels.b_interface * np.asarray(surface_pressure)[:, None]
    return np.diff(interface, axis=1) / GRAVITY


@dataclass(frozen=True)
class Grid:
    """Columns of a grid: latitude and longitude in degrees, area in steradian, each ``(n,)``."""

    latitude: np.ndarray
    longitude: np.ndarray
    area: np.ndarray


@lru_cache
def low_res_grid() -> Grid:
    """The 384 physics columns of ne4pg2, which low-res and aqua-planet share."""
    table = figures("low_res_grid")
    return Grid(*(np.array(table[key], dtype=np.float64) for key in ("lat", "lon", "area")))
