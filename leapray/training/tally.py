"""Which rows were trained in which steps, in a number: two trainings have the same one only if every step of them had the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leapray.climsim.row_keys import row_hash


@dataclass(frozen=True)
class Tally:
    """Rows and the sum modulo 2**64 of a hash of each row's key and its step, the same in whatever order and on whatever rank."""

    rows: int = 0
    checksum: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.rows + other.rows, (self.checksum + other.checksum) % 2**64)

    @classmethod
    def of(cls, row: np.ndarray, step: int) -> Tally:
        """The rows of keys ``row`` int64 (b,) in a step, counted through all epochs."""
        return cls(len(row), int(row_hash(row, step).sum(dtype=np.uint64)))

    def to_array(self) -> np.ndarray:
        """Three whole numbers as float64, which ranks can exchange and add."""
        return np.array([self.rows, self.checksum >> 32, self.checksum & 0xFFFFFFFF], np.float64)

    @classmethod
    def of_ranks(cls, arrays: Sequence[np.ndarray]) -> Tally:
        """The sum of what ranks gave."""
        rows, high, low = (int(value) for value in np.sum(arrays, axis=0))
        return cls(rows, ((high << 32) + low) % 2**64)

    def figures(self) -> dict[str, int | str]:
        """As a validation's record has it."""
        return {"trained_rows": self.rows, "row_checksum": f"{self.checksum:016x}"}
