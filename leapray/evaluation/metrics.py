"""The two scores, skill and the competition's R2, streamed: float64 moments of truth and error that merge exactly over batches and nodes.

*Skill* of column c is ``(MSE of the training mean - MSE) / max(variance in these rows, variance in the training rows)``, not below -1. The
training mean has skill 0. A perfect emulator has the *attainable* skill: 1 where every column is distributed as it was in training, less
where columns hardly vary in these rows, since those offer nothing to gain, and more where their mean here differs from the training mean.
So skill stays finite, and in the same order, on a few snapshots and on years.

*R2* of column c over all rows (time and place pooled) is ``1 - sum (y - f)^2 / sum (y - mean y)^2``, truth and prediction first multiplied
by the 0/1 weights; columns are averaged uniformly (scikit-learn's ``r2_score`` with ``force_finite``, as on the competition's page). A
column that hardly varies in these rows can make it arbitrarily low.

Shapes: t targets; which of them are learned and scored, the statistics' :class:`Targets` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import KAGGLE, Targets
from leapray.errors import UserError
from leapray.faults import told
from leapray.recipe import Select

VARYING = 1e-3
"""Share of the training variance from which a column counts as varying."""
LOWEST_SKILL = -1.0
_ROUNDING, _DECIMALS = 1e-9, 12


@dataclass(frozen=True)
class TargetStatistics:
    """Mean and variance of the targets, each ``(t,)``, over the training rows, in physical units; ``origin`` says which rows those are."""

    targets: Targets
    mean: np.ndarray
    variance: np.ndarray
    origin: str

    @classmethod
    def of_competition(cls, targets: Targets = KAGGLE.targets) -> TargetStatistics:
        """Those of the whole training set of the LEAP competition, which the package ships."""
        table = competition_columns(targets)
        return cls(targets, table.mean, np.square(table.std), "the competition's 10,091,520 training rows")

    def of(self, columns: np.ndarray) -> TargetStatistics:
        """The same for these columns ``(t,)``, and 0 for others: what a submission gives no weight is 0 in truth and prediction."""
        return TargetStatistics(self.targets, np.where(columns, self.mean, 0.0), np.where(columns, self.variance, 0.0), self.origin)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that keep every bit."""
        return {"origin": self.origin, "mean": self.mean.tolist(), "variance": self.variance.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], targets: Targets, name: str) -> Self:
        """Inverse of :meth:`to_dict`. Raises UserError, which begins with ``name``, for anything else."""
        try:
            mean, variance = (np.array(values[key], np.float64) for key in ("mean", "variance"))
            whole = mean.shape == variance.shape == (targets.width,) and np.isfinite(mean + variance).all() and (variance >= 0).all()
            if not (whole and isinstance(values["origin"], str)):
                raise ValueError("expected a finite mean and variance for every target")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name}: not statistics of the targets over training rows ({told(error, 200)})") from error
        return cls(targets, mean, variance, values["origin"])


def without_rounding(score: float) -> float:
    """A score or a difference of scores without what rounding leaves of a 0."""
    return round(score, _DECIMALS) + 0.0


def skill_of(error: np.ndarray, of_mean: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Skill by column from mean squared errors, a prediction's and the training mean's, and the variance that they are measured in.

    A truth that is constant in training and here has no unit: its skill is 0, or the lowest for what is worse than the mean.
    """
    silent = unit == 0
    known = (of_mean - error) / np.where(silent, 1.0, unit)
    worse = error > of_mean * (1 + _ROUNDING)
    return np.maximum(np.where(silent, np.where(worse, LOWEST_SKILL, 0.0), known), LOWEST_SKILL)


@dataclass(frozen=True)
class ByColumn:
    """Scores of every target, each ``(..., t)``; ``varies`` is whether a column has a thousandth of its training variance or more."""

    skill: np.ndarray
    attainable: np.ndarray
    r2: np.ndarray
    varies: np.ndarray

    @classmethod
    def of(cls, moments: np.ndarray, statistics: TargetStatistics) -> ByColumn:
        """From moments ``(..., 6, t)`` of one row or more, as :meth:`ErrorMoments.to_array` gives them.

        The R2 of a constant truth, known by min = max, is 1 if it is predicted exactly and else 0.
        """
        count, mean, deviation, error, low, high = np.moveaxis(np.asarray(moments, np.float64), -2, 0)
        # deviations below 1e-162 underflow when squared: no variance is left to explain
        constant = (low == high) | (deviation == 0)
        r2 = np.where(constant, np.where(error == 0, 1.0, 0.0), 1.0 - error / np.where(constant, 1.0, deviation))
        variance = np.where(constant, 0.0, deviation / count)
        of_mean = variance + np.square(mean - statistics.mean)
        unit = np.maximum(variance, statistics.variance)
        varies = (variance >= VARYING * statistics.variance) & ~constant
        return cls(skill_of(error / count, of_mean, unit), skill_of(np.zeros_like(error), of_mean, unit), r2, varies)

    def chosen(self, select: Select) -> np.ndarray:
        """Skill or R2, ``(..., t)``."""
        return self.skill if select == "skill" else self.r2


@dataclass(frozen=True)
class Score:
    """Scores of every target column ``(t,)`` over ``rows`` rows, and their means.

    Skill is measured against ``statistics``.
    """

    columns: ByColumn
    rows: int
    statistics: TargetStatistics

    @property
    def targets(self) -> Targets:
        return self.statistics.targets

    @property
    def skill_by_column(self) -> np.ndarray:
        return self.columns.skill

    @property
    def attainable_by_column(self) -> np.ndarray:
        return self.columns.attainable

    @property
    def r2(self) -> np.ndarray:
        return self.columns.r2

    @property
    def varies(self) -> np.ndarray:
        return self.columns.varies

    @property
    def skill(self) -> float:
        """The headline: mean skill over the columns that only learning can give."""
        # the training mean's is 0, and not what rounding leaves of it
        return without_rounding(float(self.skill_by_column[self.targets.learned].mean()))

    @property
    def attainable(self) -> float:
        """The skill of a perfect emulator on these rows."""
        return float(self.attainable_by_column[self.targets.learned].mean())

    @property
    def learned(self) -> float:
        """Mean R2 over the columns that only learning can give."""
        return float(self.r2[self.targets.learned].mean())

    @property
    def scored(self) -> float:
        """Mean R2 over the columns that the competition scores."""
        return float(self.r2[self.targets.scored].mean())

    @property
    def all(self) -> float:
        """Mean R2 over all columns, as the leaderboard takes it."""
        return float(self.r2.mean())

    @property
    def leaderboard(self) -> float:
        """``all`` as it would be with the physics applied, which makes the other columns exact: for scores of bare networks."""
        return float((np.sum(~self.targets.learned) + self.r2[self.targets.learned].sum()) / self.targets.width)

    @property
    def r2_varying(self) -> float:
        """Mean R2 over the learned columns that vary; NaN where none does."""
        varying = self.targets.learned & self.varies
        return float(self.r2[varying].mean()) if varying.any() else float("nan")

    @property
    def r2_median(self) -> float:
        """Median R2 over the learned columns."""
        return float(np.median(self.r2[self.targets.learned]))

    @property
    def below_zero(self) -> int:
        """How many learned columns have an R2 below 0."""
        return int((self.r2[self.targets.learned] < 0).sum())

    @property
    def silent(self) -> list[str]:
        """Names of the learned columns that hardly vary in these rows, the lowest R2 first."""
        places = np.flatnonzero(self.targets.learned & ~self.varies)
        return [self.targets.columns[place] for place in places[np.argsort(self.r2[places], kind="stable")]]

    def chosen(self, select: Select) -> float:
        """The score that chooses: skill, or the mean R2 of the learned columns."""
        return self.skill if select == "skill" else self.learned

    def by_variable(self) -> dict[str, float]:
        """Mean R2 of each target variable over its learned columns."""
        return _by_variable(self.targets, self.r2)

    def skill_by_variable(self) -> dict[str, float]:
        """Mean skill of each target variable over its learned columns."""
        return _by_variable(self.targets, self.skill_by_column)

    def attainable_by_variable(self) -> dict[str, float]:
        """Mean attainable skill of each target variable over its learned columns."""
        return _by_variable(self.targets, self.attainable_by_column)

    def summary(self) -> dict[str, float | None]:
        """The figures to log, by name."""
        return {
            "skill": self.skill,
            "attainable": self.attainable,
            "r2": self.learned,
            "r2_scored": self.scored,
            "r2_all": self.all,
            "r2_varying": None if np.isnan(self.r2_varying) else self.r2_varying,
            "r2_median": self.r2_median,
            "r2_below_zero": self.below_zero,
            "r2_silent": len(self.silent),
        }


def _by_variable(targets: Targets, values: np.ndarray) -> dict[str, float]:
    return {name: float(values[targets[name]][targets.learned[targets[name]]].mean()) for name in targets.names}


@dataclass
class ErrorMoments:
    """Streaming moments of the targets and of their errors, each ``(t,)`` float64; ``+`` merges those of two parts of a set.

    Deviations are merged about the mean (Chan et al. 1983), never from sums of squares: columns span 1e-51 to 1e3, and a mean
    may be many times the spread.
    """

    targets: Targets
    count: int
    mean: np.ndarray
    deviation: np.ndarray
    """Sum of ``(truth - mean)^2``."""
    error: np.ndarray
    """Sum of ``(truth - prediction)^2``."""
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def empty(cls, targets: Targets) -> ErrorMoments:
        """Moments of no rows."""
        mean, deviation, error = np.zeros((3, targets.width))
        return cls(targets, 0, mean, deviation, error, np.full(targets.width, np.inf), np.full(targets.width, -np.inf))

    @classmethod
    def of(cls, targets: Targets, truth: np.ndarray, prediction: np.ndarray) -> ErrorMoments:
        """Moments of one batch: truth and prediction ``(n, t)``, in the same unit, physical or scaled."""
        expected = (len(truth), targets.width)
        if truth.shape != expected or prediction.shape != expected:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} must both be (n, {targets.width})")
        if not len(truth):
            return cls.empty(targets)
        truth, prediction = truth.astype(np.float64, copy=False), prediction.astype(np.float64, copy=False)
        mean = truth.mean(axis=0)
        deviation = np.square(truth - mean).sum(axis=0)
        error = np.square(truth - prediction).sum(axis=0)
        moments = (mean, deviation, error, truth.min(axis=0), truth.max(axis=0))
        # where, not a product: NaN in a column that does not count stays out
        return cls(targets, len(truth), *(np.where(targets.scored, moment, 0.0) for moment in moments))

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Take in one batch, truth and prediction ``(n, t)``."""
        vars(self).update(vars(self + self.of(self.targets, truth, prediction)))

    def __add__(self, other: ErrorMoments) -> ErrorMoments:
        count = self.count + other.count
        if not (self.count and other.count):
            return other if other.count else self
        share = other.count / count
        shift = other.mean - self.mean
        return ErrorMoments(
            self.targets,
            count,
            self.mean + shift * share,
            self.deviation + other.deviation + np.square(shift) * (self.count * share),
            self.error + other.error,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def to_array(self) -> np.ndarray:
        """All moments as ``(6, t)`` float64, to be gathered from workers and merged in their order."""
        count = np.full(self.targets.width, float(self.count))
        return np.stack([count, self.mean, self.deviation, self.error, self.low, self.high])

    @classmethod
    def from_array(cls, targets: Targets, array: np.ndarray) -> ErrorMoments:
        """Inverse of ``to_array``."""
        count, *moments = np.asarray(array, dtype=np.float64)
        return cls(targets, int(count[0]), *moments)

    def score(self, statistics: TargetStatistics) -> Score:
        """Scores by column, skill against the training rows' statistics. Raises ValueError without rows."""
        if not self.count:
            raise ValueError("no rows to score")
        return Score(ByColumn.of(self.to_array(), statistics), self.count, statistics)
