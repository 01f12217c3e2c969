"""The competition's R2, streamed: float64 moments of truth and error that merge exactly over batches, workers and nodes.

R2 of column c over all rows (time and place pooled) is ``1 - sum (y - f)^2 / sum (y - mean y)^2``, truth and prediction first
multiplied by the 0/1 weights; columns are averaged uniformly (FACTS section 2, scikit-learn's ``r2_score`` with ``force_finite``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from leapray.climsim.schema import LEARNED, SCORED, TARGETS


@dataclass(frozen=True)
class Score:
    """R2 of every target column ``(368,)`` over ``rows`` rows, and its means."""

    r2: np.ndarray
    rows: int

    @property
    def learned(self) -> float:
        """The headline: mean over the 293 columns that only learning can give."""
        return float(self.r2[LEARNED].mean())

    @property
    def scored(self) -> float:
        """Mean over the 308 columns that the competition scores."""
        return float(self.r2[SCORED].mean())

    @property
    def all(self) -> float:
        """Mean over all 368 columns, as the leaderboard takes it."""
        return float(self.r2.mean())

    @property
    def leaderboard(self) -> float:
        """``all`` as it would be with the physics applied, which makes the 75 other columns exact: for scores of bare networks."""
        return float((np.sum(~LEARNED) + self.r2[LEARNED].sum()) / TARGETS.width)

    def by_variable(self) -> dict[str, float]:
        """Mean R2 of each target variable over its learned columns."""
        return {v.name: float(self.r2[TARGETS[v.name]][LEARNED[TARGETS[v.name]]].mean()) for v in TARGETS.variables}

    def summary(self) -> dict[str, float]:
        """The figures to log, by name."""
        return {"learned": self.learned, "scored": self.scored, "all": self.all}


def _zeros() -> np.ndarray:
    return np.zeros(TARGETS.width)


@dataclass
class ErrorMoments:
    """Streaming moments of the 368 targets and of their errors, each ``(368,)`` float64; ``+`` merges those of two parts of a set.

    Deviations are merged about the mean (Chan et al. 1983), never from sums of squares: columns span 1e-51 to 1e3, and a mean
    may be many times the spread.
    """

    count: int = 0
    mean: np.ndarray = field(default_factory=_zeros)
    deviation: np.ndarray = field(default_factory=_zeros)
    """Sum of ``(truth - mean)^2``."""
    error: np.ndarray = field(default_factory=_zeros)
    """Sum of ``(truth - prediction)^2``."""
    low: np.ndarray = field(default_factory=lambda: np.full(TARGETS.width, np.inf))
    high: np.ndarray = field(default_factory=lambda: np.full(TARGETS.width, -np.inf))

    @classmethod
    def of(cls, truth: np.ndarray, prediction: np.ndarray) -> ErrorMoments:
        """Moments of one batch: truth and prediction ``(n, 368)``, in the same unit, physical or scaled."""
        expected = (len(truth), TARGETS.width)
        if truth.shape != expected or prediction.shape != expected:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} must both be (n, {TARGETS.width})")
        if not len(truth):
            return cls()
        truth, prediction = truth.astype(np.float64, copy=False), prediction.astype(np.float64, copy=False)
        mean = truth.mean(axis=0)
        deviation = np.square(truth - mean).sum(axis=0)
        error = np.square(truth - prediction).sum(axis=0)
        moments = (mean, deviation, error, truth.min(axis=0), truth.max(axis=0))
        # where, not a product: NaN in a column that does not count stays out
        return cls(len(truth), *(np.where(SCORED, moment, 0.0) for moment in moments))

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Take in one batch, truth and prediction ``(n, 368)``."""
        vars(self).update(vars(self + self.of(truth, prediction)))

    def __add__(self, other: ErrorMoments) -> ErrorMoments:
        count = self.count + other.count
        if not (self.count and other.count):
            return other if other.count else self
        share = other.count / count
        shift = other.mean - self.mean
        return ErrorMoments(
            count,
            self.mean + shift * share,
            self.deviation + other.deviation + np.square(shift) * (self.count * share),
            self.error + other.error,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def to_array(self) -> np.ndarray:
        """All moments as ``(6, 368)`` float64, to be gathered from workers and merged in their order."""
        count = np.full(TARGETS.width, float(self.count))
        return np.stack([count, self.mean, self.deviation, self.error, self.low, self.high])

    @classmethod
    def from_array(cls, array: np.ndarray) -> ErrorMoments:
        """Inverse of ``to_array``."""
        count, *moments = np.asarray(array, dtype=np.float64)
        return cls(int(count[0]), *moments)

    def score(self) -> Score:
        """R2 by column. A constant truth, known by min = max, gives 1 if predicted exactly and else 0. Raises ValueError without rows."""
        if not self.count:
            raise ValueError("no rows to score")
        # deviations below 1e-162 underflow when squared: no variance is left to explain
        constant = (self.low == self.high) | (self.deviation == 0)
        unexplained = self.error / np.where(constant, 1.0, self.deviation)
        return Score(np.where(constant, np.where(self.error == 0, 1.0, 0.0), 1.0 - unexplained), self.count)
