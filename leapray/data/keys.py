"""Row keys as runs of consecutive numbers, in which the rows of a snapshot are one: to find a row that stands twice in terabytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

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
