"""Sums over rows that belong together and lie side by side: those of one grid column, or of one band of latitude.

Shapes: c targets, n rows, g groups. Values are ``(c, n)``, target by target, as columns are read.
"""

from __future__ import annotations

import numpy as np


class RowRuns:
    """Runs of equal integer keys ``(n,)``, each key in one run: ``keys (g,)``, and the rows of each, ``counts (g,)``."""

    def __init__(self, keys: np.ndarray) -> None:
        self._starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
        self.keys = keys[self._starts]
        self.counts = np.diff(self._starts, append=len(keys))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over each group, ``(c, g)``, of values ``(c, n)``."""
        return values if len(self.keys) == values.shape[-1] else np.add.reduceat(values, self._starts, axis=-1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of groups ``(c, g)`` at each of their rows, ``(c, n)``."""
        return np.repeat(values, self.counts, axis=-1)
