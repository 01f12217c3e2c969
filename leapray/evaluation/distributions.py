"""How values are distributed: truth and prediction of the scalars together, and how often it rains how much; CRPS of an ensemble.

Shapes: t targets, l levels, n rows, s scalars, b bins.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import STEP_SECONDS, WATER, Targets
from leapray.evaluation.climsim import WATER_DENSITY, column_moistening
from leapray.evaluation.results import Joint, Precipitation

SECONDS_PER_DAY = STEP_SECONDS * STEPS_PER_DAY
_MM_PER_DAY = WATER_DENSITY * SECONDS_PER_DAY
"""Of 1 m/s of water: a millimetre of it is a kg/m2."""
_PRECIPITATION = "cam_out_PRECC"
_BINS = 50
_LEAST, _MOST = 0.01, 1000.0
"""Precipitation in mm/day: below the least it is as good as dry."""


def precipitation_edges() -> np.ndarray:
    """Edges in mm/day ``(b + 1,)``: 0, then logarithmic from 0.01 to 1000."""
    return np.append(0.0, np.geomspace(_LEAST, _MOST, _BINS))


@lru_cache
def scalar_edges(targets: Targets) -> np.ndarray:
    """Edges ``(s, b + 1)`` in each scalar's unit, the same for every evaluation: even from the lowest to the highest value of a flux in the
    competition's training set, :func:`precipitation_edges` for snow and rain."""
    return np.stack([_edges(targets, targets[scalar.name].start) for scalar in targets.scalars])


def _edges(targets: Targets, column: int) -> np.ndarray:
    if targets.units[column] == "m/s":
        return precipitation_edges() / _MM_PER_DAY
    known = competition_columns(targets)
    return np.linspace(known.minimum[column], known.maximum[column], _BINS + 1)


class JointCounts:
    """Streaming :class:`Joint`."""

    def __init__(self, targets: Targets) -> None:
        self._edges = scalar_edges(targets)
        self._places = [targets[scalar.name].start for scalar in targets.scalars]
        self.counts = np.zeros((len(self._places), _BINS, _BINS), np.int64)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Take in targets ``(t, n)`` in physical units."""
        for counts, edges, y, f in zip(self.counts, self._edges, truth[self._places], prediction[self._places], strict=True):
            pair = _bin(edges, y) * _BINS + _bin(edges, f)
            counts += np.bincount(pair, minlength=_BINS**2).reshape(_BINS, _BINS)

    def result(self) -> Joint:
        return Joint(self._edges, self.counts)


def with_precipitation(targets: Targets) -> bool:
    """Whether precipitation is among the targets."""
    return _PRECIPITATION in targets


class PrecipitationCounts:
    """Streaming :class:`Precipitation`; what is beyond an end is counted in the last bin there."""

    def __init__(self, targets: Targets) -> None:
        self._targets, self._place = targets, targets[_PRECIPITATION].start
        self.truth, self.prediction = np.zeros((2, _BINS), np.int64)
        self._water = np.zeros((_BINS, 2))
        self._weighed = False

    def update(self, truth: np.ndarray, prediction: np.ndarray, mass: np.ndarray | None) -> None:
        """Take in targets ``(t, n)`` in physical units, and the mass of layers ``(l, n)`` in kg/m2 where it is known.

        Without the tendencies of all three water species a column's moistening is not known.
        """
        edges = precipitation_edges() / _MM_PER_DAY
        rains = _bin(edges, truth[self._place])
        self.truth += np.bincount(rains, minlength=_BINS)
        self.prediction += np.bincount(_bin(edges, prediction[self._place]), minlength=_BINS)
        if mass is not None and len(self._targets.water) == len(WATER):
            self._weighed = True
            for index, values in enumerate((truth, prediction)):
                self._water[:, index] += np.bincount(rains, column_moistening(self._targets, values, mass), _BINS)

    def result(self) -> Precipitation:
        with np.errstate(invalid="ignore"):
            mean = self._water * SECONDS_PER_DAY / np.where(self.truth > 0, self.truth, np.nan)[:, None]
        return Precipitation(precipitation_edges(), self.truth, self.prediction, mean if self._weighed else np.full_like(mean, np.nan))


def _bin(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def fair_crps(truth: np.ndarray, members: np.ndarray) -> np.ndarray:
    """CRPS of each number, in its unit: truth of any shape, ``members (M, *shape)``.

    ``mean |x_m - y| - sum_i gap_i i (M - i) / (M (M - 1))`` with the gaps between the sorted members: half the mean distance between two
    different members, so that the score does not depend on how many there are. Raises ValueError for fewer than two members.
    """
    count = len(members)
    if count < 2:
        raise ValueError(f"the CRPS needs two members or more, not {count}")
    score: np.ndarray = np.abs(members - truth).mean(axis=0)
    below = np.arange(1, count)
    pairs = below * (count - below) / (count * (count - 1))
    score -= np.tensordot(pairs, np.diff(np.sort(members, axis=0), axis=0), axes=1)
    return score
