"""Mergeable float64 moments of columns: count, mean, centred sum of squares, minimum and maximum.

Merging follows Chan, Golub and LeVeque (1983). Parts are merged in file order, so the result does not depend on how many workers
made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

_RELATIVE_SPREAD = 1e-10
_ARRAYS = ("mean", "m2", "minimum", "maximum")
_SLAB_BYTES = 1 << 19
"""Columns that are reduced at a time, so that they and their deviations stay in a core's cache over the passes."""


_SHIFT_ROWS = 256


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
        """Moments of a float64 matrix ``(n, width)`` of any memory layout, the same to the last bit; fastest column by column (F order).

        NaN reaches the minimum and maximum of its column, an infinity one of them: both finite means that every value is.
        """
        return cls.of_columns(matrix.T)

    @classmethod
    def of_columns(cls, columns: Sequence[np.ndarray] | np.ndarray) -> Self:
        """Moments of float64 columns ``(n,)``, which need not lie side by side."""
        width = len(columns)
        count = len(columns[0]) if width else 0
        if count == 0:
            return cls.empty(width)
        mean, m2, minimum, maximum = (np.empty(width) for _ in range(4))
        step = max(_SLAB_BYTES // (8 * count), 1)
        deviations = np.empty((min(step, width), count))
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, width, step):
                part = slice(start, min(start + step, width))
                slab = np.ascontiguousarray(columns[part]) if isinstance(columns, np.ndarray) else np.stack(columns[part])
                slab.min(axis=1, out=minimum[part])
                slab.max(axis=1, out=maximum[part])
                # near the mean is enough, since the deviations' own mean is added to it
                shift = slab[:, :_SHIFT_ROWS].mean(axis=1)
                d = np.subtract(slab, shift[:, None], out=deviations[: len(slab)])
                correction = d.mean(axis=1)
                mean[part] = shift + correction
                m2[part] = np.maximum(np.einsum("ij,ij->i", d, d) - count * correction**2, 0)
        return cls(count, mean, m2, minimum, maximum)

    @classmethod
    def beside(cls, parts: Sequence[Moments]) -> Self:
        """Moments of matrices of the same rows that stand side by side."""
        return cls(parts[0].count, *(np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS))

    def __getitem__(self, columns: slice) -> Moments:
        """Moments of some of the columns."""
        return Moments(self.count, self.mean[columns], self.m2[columns], self.minimum[columns], self.maximum[columns])

    def pooled(self) -> Moments:
        """Moments of all values as of one column: the spread within the columns and that of their means."""
        mean = self.mean.mean(keepdims=True)
        m2 = self.m2.sum(keepdims=True) + self.count * ((self.mean - mean) ** 2).sum(keepdims=True)
        return Moments(self.count * len(self.mean), mean, m2, self.minimum.min(keepdims=True), self.maximum.max(keepdims=True))

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values that keep every bit."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS} if self.count else {}
        return {"count": self.count, **arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], width: int) -> Moments:
        """Inverse of :meth:`to_dict`; ``width`` is that of moments of no rows."""
        return cls(values["count"], *(np.array(values[name]) for name in _ARRAYS)) if values["count"] else cls.empty(width)

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation (ddof 0)."""
        return np.sqrt(self.m2 / max(self.count, 1))

    @property
    def constant(self) -> np.ndarray:
        """Columns whose spread is rounding noise: ``std == 0`` misses gases whose stored values differ in the last bits."""
        return self.maximum - self.minimum <= _RELATIVE_SPREAD * np.maximum(np.abs(self.maximum), np.abs(self.minimum))
