"""The kinds of ClimSim data, the key that a row has by its kind, step and column, and hashes and runs of keys."""

from __future__ import annotations

from collections.abc import Iterable
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


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_hash(row: np.ndarray, seed: int) -> np.ndarray:
    """Uniform uint64 of each row key and the seed: SplitMix64's finaliser (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = row.astype(np.uint64) + _GOLDEN * np.uint64(2 * seed + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


Run = tuple[int, int]
"""Keys from the first up to, not including, the second."""


def key_runs(keys: np.ndarray) -> list[Run]:
    """The keys ``(n,)`` as runs, in order; a key that is there more than once begins a run of its own each further time."""
    ordered = np.sort(keys)
    edges = np.flatnonzero(np.diff(ordered) != 1) + 1
    parts = np.split(ordered, edges) if len(ordered) else []
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]


def first_twice(runs: Iterable[tuple[Run, str]]) -> tuple[int, str, str] | None:
    """The first key that lies in two of the runs, and the names that these came with; None if every key is there once."""
    last: tuple[Run, str] | None = None
    for run, name in sorted(runs):
        if last is not None and run[0] < last[0][1]:
            return run[0], last[1], name
        if last is None or run[1] > last[0][1]:
            last = run, name
    return None
