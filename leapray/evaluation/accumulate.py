"""One pass over truth and predictions, in batches, to everything that an :class:`Evaluation` holds.

Shapes: n rows of a batch, c targets. Inside, values are ``(c, n)``, target by target, and rows ordered by day, band of latitude and
grid column, so that what is summed together lies together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from leapray.climsim.grid import Grid, layer_mass
from leapray.climsim.schema import Targets
from leapray.evaluation.climsim import ErrorByColumn, TruthByColumn, climsim, times_mass
from leapray.evaluation.distributions import JointCounts, PrecipitationCounts, with_precipitation
from leapray.evaluation.intervals import TimedMoments, time_blocks
from leapray.evaluation.metrics import ErrorMoments, TargetStatistics
from leapray.evaluation.results import Evaluation
from leapray.evaluation.rowruns import RowRuns
from leapray.evaluation.zonal import BandSums, bands, zonal


@dataclass(frozen=True)
class Batch:
    """Rows of the truth: targets ``(n, c)`` in physical units, and what is known of each row ``(n,)``.

    ``step`` is absolute, ``ncol`` the row's place in ``grid``, ``surface_pressure`` in Pa.
    """

    targets: np.ndarray
    step: np.ndarray | None = None
    ncol: np.ndarray | None = None
    surface_pressure: np.ndarray | None = None
    grid: Grid | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """Values ``(n, c)`` of its rows as ``(c, n)``, in the order of ``days``."""
        return np.ascontiguousarray(values.T) if self._order is None else np.take(values.T, self._order, axis=1)

    @cached_property
    def days(self) -> list[Day]:
        """Its rows by day; all in one, numbered 0, where they tell no time."""
        if not len(self):
            return []
        day = self._day if self._order is None else self._day[self._order]
        truth = self.arrange(self.targets)
        mass = None if self.surface_pressure is None else self.arrange(layer_mass(self.surface_pressure))
        edges = [0, *(np.flatnonzero(np.diff(day)) + 1).tolist(), len(day)]
        return [self._rows(int(day[a]), slice(a, b), truth, mass) for a, b in pairwise(edges)]

    def _rows(self, number: int, rows: slice, truth: np.ndarray, mass: np.ndarray | None) -> Day:
        ncol, area = None, None
        if self.grid is not None:
            assert self.ncol is not None
            ncol = self.ncol[rows] if self._order is None else self.ncol[self._order[rows]]
            area = self.grid.area[ncol]
        columns, by_band = (None, None) if ncol is None else (RowRuns(ncol), RowRuns(self._band[ncol]))
        return Day(number, rows, truth[:, rows], None if mass is None else mass[:, rows], columns, by_band, area)

    @cached_property
    def _day(self) -> np.ndarray:
        return np.zeros(len(self), np.int64) if self.step is None else time_blocks(self.step)

    @cached_property
    def _band(self) -> np.ndarray:
        """Band of each column of the grid."""
        assert self.grid is not None
        return bands(self.grid.latitude)

    @cached_property
    def _order(self) -> np.ndarray | None:
        """Rows by day, band and column; None where they lie so."""
        keys = (self._day,) if self.grid is None or self.ncol is None else (self.ncol, self._band[self.ncol], self._day)
        order = np.lexsort(keys)
        return None if (order[1:] > order[:-1]).all() else order


@dataclass(frozen=True)
class Day:
    """Rows of a batch that lie in one day: their truth ``(c, n)``, layer masses ``(levels, n)``, areas, and runs by column and band."""

    number: int
    rows: slice
    truth: np.ndarray
    mass: np.ndarray | None
    columns: RowRuns | None
    bands: RowRuns | None
    area: np.ndarray | None


class Truth:
    """What is accumulated of the truth alone, once for all predictions beside it.

    ``grid`` is None where rows tell no place on one; ``timed`` and ``weighed`` say whether every row tells its step and surface pressure.
    """

    def __init__(self, targets: Targets, *, timed: bool, weighed: bool, grid: Grid | None) -> None:
        self.targets, self.timed, self.grid = targets, timed, grid
        self.rows = 0
        self.sum = np.zeros(targets.width)
        self.columns = TruthByColumn(targets, len(grid.area)) if grid and timed and weighed else None
        self.bands = (BandSums(1), BandSums(targets.width)) if grid and timed and targets.profiles else None

    def take(self, batch: Batch) -> None:
        """Take in a batch."""
        for day in batch.days:
            self.rows += day.truth.shape[1]
            self.sum += day.truth.sum(axis=1)
            if self.columns is not None:
                assert day.columns is not None
                assert day.mass is not None
                self.columns.update(day.columns, times_mass(self.targets, day.truth, day.mass))
            if self.bands is not None:
                assert day.bands is not None
                assert day.area is not None
                for sums, values in zip(self.bands, (day.area[None], day.truth * day.area), strict=True):
                    sums.update(day.number, day.bands, values)


class Prediction:
    """What is accumulated of one prediction. ``statistics`` are what skill is measured against, ``scored (c,)`` the columns that count,
    all but those to which a submission gives no weight; ``whole`` is False for one that needs no distributions and no bands."""

    def __init__(
        self, name: str, truth: Truth, statistics: TargetStatistics, *, scored: np.ndarray | None = None, whole: bool = True
    ) -> None:
        self.name, self._truth = name, truth
        self._scored = None if scored is None or scored.all() else scored
        self._moments = TimedMoments(statistics if self._scored is None else statistics.of(self._scored))
        targets = self.targets = statistics.targets
        self._bias, self._magnitude = np.zeros((2, targets.width))
        self._crps: np.ndarray | None = None
        self._columns = None if truth.columns is None else ErrorByColumn(targets, len(truth.columns.count))
        self._bands = BandSums(targets.width) if whole and truth.bands is not None else None
        self._joint = JointCounts(targets) if whole and targets.scalars else None
        self._precipitation = PrecipitationCounts(targets) if whole and with_precipitation(targets) else None

    def take(self, batch: Batch, prediction: np.ndarray) -> None:
        """Take in predictions ``(n, c)``, in physical units, of the rows of a batch."""
        for day, values in _by_day(batch, prediction):
            truth = day.truth if self._scored is None else np.where(self._scored[:, None], day.truth, 0.0)
            self._moments.take(day.number, ErrorMoments.of(self.targets, truth.T, values.T))
            if self._joint is not None:
                self._joint.update(day.truth, values)
            if self._precipitation is not None:
                self._precipitation.update(day.truth, values, day.mass)
            self._take_error(day, values - day.truth)

    def _take_error(self, day: Day, error: np.ndarray) -> None:
        self._bias += error.sum(axis=1)
        self._magnitude += np.abs(error).sum(axis=1)
        if self._bands is not None:
            assert day.bands is not None
            assert day.area is not None
            self._bands.update(day.number, day.bands, error * day.area)
        if self._columns is not None:
            assert day.columns is not None
            assert day.mass is not None
            self._columns.update(day.columns, times_mass(self.targets, error, day.mass))

    def take_crps(self, batch: Batch, crps: np.ndarray) -> None:
        """Take in the CRPS ``(n, c)`` of an ensemble, of the rows of a batch."""
        if self._crps is None:
            self._crps = np.zeros(self.targets.width)
        for day, values in _by_day(batch, crps):
            self._crps += values.sum(axis=1)
            if self._columns is not None:
                assert day.columns is not None
                assert day.mass is not None
                self._columns.update_crps(day.columns, times_mass(self.targets, values, day.mass))

    def result(self, lacking: tuple[str, ...] = ()) -> Evaluation:
        """All that was found. Raises ValueError without rows."""
        truth = self._truth
        if not truth.rows:
            raise ValueError("no rows to evaluate")
        return Evaluation(
            name=self.name,
            rows=truth.rows,
            timed=truth.timed,
            moments=self._moments,
            mean=truth.sum / truth.rows,
            bias=self._bias / truth.rows,
            mae=self._magnitude / truth.rows,
            joint=self._joint.result() if self._joint else None,
            precipitation=self._precipitation.result() if self._precipitation else None,
            climsim=climsim(truth.columns, self._columns, truth.grid.area) if truth.columns and self._columns and truth.grid else None,
            zonal=zonal(self.targets, *truth.bands, self._bands) if truth.bands and self._bands else None,
            crps=None if self._crps is None else self._crps / truth.rows,
            lacking=lacking,
        )


def _by_day(batch: Batch, values: np.ndarray) -> Iterator[tuple[Day, np.ndarray]]:
    """Each day of a batch with its part of values ``(n, c)``, as ``(c, rows of the day)``."""
    arranged = batch.arrange(values) if len(batch) else values.T
    for day in batch.days:
        yield day, arranged[:, day.rows]
