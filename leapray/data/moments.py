"""Mergeable float64 moments of columns: count, mean, centred sum of squares, minimum and maximum.

Merging follows Chan, Golub and LeVeque (1983). Parts are merged in file order, so the result does not depend on how many workers
made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Moments of n rows; every array is float64 ``(width,)``."""

    count: int
    mean: np.ndarray
    m2: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @classmethod
    def empty(cls, width: int) -> Self:
        zero = np.zeros(width)
        return cls(0, zero, zero, np.full(width, np.inf), np.full(width, -np.inf))

    @classmethod
    def of(cls, matrix: np.ndarray) -> Self:
        """Moments of a float64 matrix ``(n, width)``, in two passes over it."""
        count, width = matrix.shape
        if count == 0:
            return cls.empty(width)
        # the deviations' own mean takes out what rounding left in the first one
        shift = matrix.mean(axis=0)
        deviations = matrix - shift
        correction = deviations.mean(axis=0)
        m2 = np.einsum("ij,ij->j", deviations, deviations) - count * correction**2
        return cls(count, shift + correction, np.maximum(m2, 0), matrix.min(axis=0), matrix.max(axis=0))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count / count
        return Moments(
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + delta**2 * (self.count * share),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    @classmethod
    def merge_all(cls, parts: Iterable[Moments], width: int) -> Moments:
        """Merge parts in the order given."""
        total: Moments = cls.empty(width)
        for part in parts:
            total = total.merge(part)
        return total

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation (ddof 0)."""
        return np.sqrt(self.m2 / max(self.count, 1))

    @property
    def constant(self) -> np.ndarray:
        """Columns whose spread is rounding noise: ``std == 0`` misses gases whose stored values differ in the last bits (FACTS 3)."""
        return self.maximum - self.minimum <= _RELATIVE_SPREAD * np.maximum(np.abs(self.maximum), np.abs(self.minimum))


_RELATIVE_SPREAD = 1e-10
