"""Skill by band of latitude: R2 of daily means over bands of 10 degrees, area weighted.

Shapes: c targets, n rows, z bands from south to north, d days.
"""

from __future__ import annotations

import numpy as np

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import Targets
from leapray.evaluation.results import Zonal
from leapray.evaluation.rowruns import RowRuns

EDGES = np.arange(-90.0, 91.0, 10.0)
BANDS = len(EDGES) - 1
DAYS = 10
"""Fewest days of which an R2 is told: of fewer, it is chance whether their means differ."""
VARYING = 1e-6
"""Share of the variance in the competition's training set, place and time pooled, from which the mean of a band varies over days."""


def bands(latitude: np.ndarray) -> np.ndarray:
    """Band of each latitude in degrees; one on an edge belongs to the north of it, the pole to the last."""
    return np.clip(np.searchsorted(EDGES, latitude, side="right") - 1, 0, BANDS - 1)


class BandSums:
    """Sums of ``width`` values times area, by day and band: ``days`` holds ``(width, z)`` for each."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.days: dict[int, np.ndarray] = {}

    def update(self, day: int, groups: RowRuns, weighted: np.ndarray) -> None:
        """Take in values times area ``(width, n)`` of rows of one day, of the bands ``groups``."""
        self.days.setdefault(day, np.zeros((self._width, BANDS)))[:, groups.keys] += groups.sums(weighted)

    def stacked(self) -> np.ndarray:
        """``(d, width, z)``, days in order."""
        return np.stack([self.days[day] for day in sorted(self.days)])


def zonal(targets: Targets, area: BandSums, truth: BandSums, error: BandSums) -> Zonal:
    """Skill from the sums of areas (width 1), of truth and of errors, prediction less truth, both times area."""
    weight, truths, errors = area.stacked(), truth.stacked(), error.stacked()
    total = weight.sum(axis=0)
    lies = total > 0
    least = VARYING * np.square(competition_columns(targets).std)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.stack([_r2(truths[:, :, band], errors[:, :, band], weight[:, 0, band], least) for band in range(BANDS)])
        means = [np.where(lies, sums.sum(axis=0) / total, np.nan).T for sums in (truths, errors)]
    return Zonal(EDGES, r2, *means)


def _r2(truth: np.ndarray, error: np.ndarray, weight: np.ndarray, least: np.ndarray) -> np.ndarray:
    """R2 over days ``(c,)`` of one band, from sums ``(d, c)`` and areas ``(d,)``; NaN of fewer than ``DAYS`` and where the
    variance is below the ``least (c,)``."""
    met = weight > 0
    days = int(met.sum())
    if days < DAYS:
        return np.full(len(least), np.nan)
    daily, wrong = truth[met] / weight[met, None], error[met] / weight[met, None]
    deviation = np.square(daily - daily.mean(axis=0)).sum(axis=0)
    unexplained: np.ndarray = np.square(wrong).sum(axis=0) / deviation
    # equal daily means differ by the rounding of their sums
    varies = np.ptp(daily, axis=0) > 1e-12 * np.abs(daily).max(axis=0)
    return np.where(varies & (deviation >= days * least), 1.0 - unexplained, np.nan)
