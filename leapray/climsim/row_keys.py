"""The kinds of ClimSim data, and the key that a row has by its kind, step and column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kind:
    """One of ClimSim's three data sets: its name, cubed-sphere resolution, columns and code in row keys."""

    name: str
    ne: int
    columns: int
    code: int


KINDS = {kind.name: kind for kind in (Kind("low-res", 4, 384, 0), Kind("aqua-planet", 4, 384, 1), Kind("high-res", 30, 21600, 2))}

COLUMN_BITS, STEP_BITS = 24, 32


def row_key(kind: str, step: np.ndarray, ncol: np.ndarray) -> np.ndarray:
    """int64 key of a row, ``code << 56 | step << 24 | ncol``, which :func:`row_place` leads back to its place."""
    key = np.int64(KINDS[kind].code) << (COLUMN_BITS + STEP_BITS)
    return key | (np.asarray(step, np.int64) << COLUMN_BITS) | np.asarray(ncol, np.int64)


MONTH_SHIFT = 46
"""Of a negative key, which a row without a place has: the bits below its month."""


def month_of_key(row: np.ndarray) -> np.ndarray:
    """Months since year 0 that negative keys tell; 0 where they tell none, and of keys that tell a step. int64 of the shape of ``row``."""
    row = np.asarray(row, np.int64)
    return np.where(row < 0, (-1 - row) >> MONTH_SHIFT, 0)


def row_place(row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of :func:`row_key`: kind codes, steps and columns, each int64 of the shape of ``row``."""
    row = np.asarray(row, np.int64)
    step = (row >> COLUMN_BITS) & ((1 << STEP_BITS) - 1)
    return row >> (COLUMN_BITS + STEP_BITS), step, row & ((1 << COLUMN_BITS) - 1)
