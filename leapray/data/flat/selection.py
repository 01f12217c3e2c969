"""Which rows of a source belong to a split: months, every stride-th step, and a drawn share of the snapshots.

Shapes: n rows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np

from leapray.climsim.calendar import Month
from leapray.climsim.row_keys import row_hash
from leapray.errors import UserError

_SALT = np.int64(0x1D8E4E27C47D124F)
"""Makes the draw independent of the shuffle, which hashes the same keys with the same seed."""
_STEPS_TRIED = 4096


class Share(Enum):
    """How many of some rows a selection takes, as far as can be told unread."""

    NONE = 0
    SOME = 1
    ALL = 2


@dataclass(frozen=True)
class Selection:
    """Rows by the absolute step of their snapshot.

    Months run from ``start`` up to, not including, ``stop``; of their steps those with ``step % stride == phase``; of these whole
    snapshots, each with probability ``fraction``, drawn by a hash of step and ``seed``. Rows whose step is unknown are drawn by their
    key instead. ``month`` is the month of all rows of files that tell none. Raises UserError for a stride, phase or fraction that is none.
    """

    start: Month | None = None
    stop: Month | None = None
    stride: int = 1
    phase: int = 0
    fraction: float = 1.0
    seed: int = 0
    month: Month | None = None

    def __post_init__(self) -> None:
        if self.stride < 1 or not 0 <= self.phase < self.stride:
            raise UserError(
                f"stride {self.stride} with phase {self.phase}: expected a stride of at least 1 and a phase from 0 to stride - 1"
            )
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction {self.fraction}: expected more than 0 and at most 1")

    @cached_property
    def steps(self) -> range:
        """Steps of the months."""
        return range(self.start.first_step if self.start else -sys.maxsize, self.stop.first_step if self.stop else sys.maxsize)

    @property
    def by_month(self) -> bool:
        return self.start is not None or self.stop is not None

    @property
    def needs_steps(self) -> bool:
        """Whether it cannot be told which rows belong without knowing when they are."""
        return self.by_month or self.stride > 1

    def takes_steps(self, step: np.ndarray) -> np.ndarray:
        """bool ``(n,)``: whether each snapshot of these absolute steps belongs."""
        inside = (step >= self.steps.start) & (step < self.steps.stop) & (step % self.stride == self.phase)
        return inside & self._draw(step)

    def takes_rows(self, row: np.ndarray) -> np.ndarray:
        """bool ``(n,)``: whether each row of a known month, but of unknown step, belongs, by its key."""
        return self._draw(row)

    def _draw(self, key: np.ndarray) -> np.ndarray:
        if self.fraction == 1:
            return np.ones(len(key), bool)
        return row_hash(key ^ _SALT, self.seed) < np.uint64(int(self.fraction * 2**64))

    def share(self, first: int, last: int) -> Share:
        """Share that is taken of snapshots between two steps, both included."""
        if last < self.steps.start or first >= self.steps.stop:
            return Share.NONE
        if last - first < _STEPS_TRIED:
            taken = self.takes_steps(np.arange(first, last + 1))
            return Share.ALL if taken.all() else Share.SOME if taken.any() else Share.NONE
        inside = first in self.steps and last in self.steps and self.stride == 1 and self.fraction == 1
        return Share.ALL if inside else Share.SOME

    def share_of_month(self, month: Month) -> Share:
        """Share that is taken of rows of one month, of unknown step."""
        if month.first_step not in self.steps:
            return Share.NONE
        return Share.ALL if self.fraction == 1 else Share.SOME

    def __str__(self) -> str:
        months = f" from {self.start or 'the beginning'} up to {self.stop or 'the end'}" if self.by_month else ""
        stride = f" with step % {self.stride} == {self.phase}" if self.stride > 1 else ""
        return months + stride + (f" in a drawn fraction of {self.fraction:g}" if self.fraction < 1 else "")
