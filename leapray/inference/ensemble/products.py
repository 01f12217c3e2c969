"""What solving for weights needs of truth and predictions, streamed: products of the members' errors by column, merged exactly.

Shapes: M members, C learned columns, n rows. With weights ``w`` the ensemble's squared error in column c, summed over rows, is
``w' E_c w`` with ``E_c[m, k] = sum (f_m - y) (f_k - y)``: rows are read once, whatever weights are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leapray.climsim.schema import Targets
from leapray.evaluation.metrics import ErrorMoments, TargetStatistics, skill_of, without_rounding


@dataclass(frozen=True)
class ErrorProducts:
    """``products (C, M, M)`` and the moments of the truth; ``+`` merges those of two parts of a set.

    ``statistics`` are those of the training rows, against which skill is measured.
    """

    products: np.ndarray
    statistics: TargetStatistics
    truth: ErrorMoments
    """Of the truth, beside the plain mean of the members."""

    @classmethod
    def empty(cls, members: int, statistics: TargetStatistics) -> ErrorProducts:
        learned = int(statistics.targets.learned.sum())
        return cls(np.zeros((learned, members, members)), statistics, ErrorMoments.empty(statistics.targets))

    @classmethod
    def of(cls, truth: np.ndarray, predictions: np.ndarray, statistics: TargetStatistics) -> ErrorProducts:
        """Of one batch: truth ``(n, t)`` and predictions ``(M, n, t)``, physical."""
        learned = statistics.targets.learned
        errors = predictions.transpose(2, 0, 1)[learned] - truth.T[learned][:, None]
        return cls(errors @ errors.swapaxes(1, 2), statistics, ErrorMoments.of(statistics.targets, truth, predictions.mean(axis=0)))

    def __add__(self, other: ErrorProducts) -> ErrorProducts:
        return ErrorProducts(self.products + other.products, self.statistics, self.truth + other.truth)

    @property
    def targets(self) -> Targets:
        return self.statistics.targets

    @property
    def learned(self) -> np.ndarray:
        return self.targets.learned

    @property
    def members(self) -> int:
        return self.products.shape[1]

    @cached_property
    def _unit(self) -> np.ndarray:
        """What a squared error summed over rows is measured in, ``(C,)``: as skill has it, and 0 where nothing varies."""
        variance = np.where(self._varies, self.truth.deviation[self.learned], 0.0)
        return np.maximum(variance, self.truth.count * self.statistics.variance[self.learned])

    @property
    def _varies(self) -> np.ndarray:
        return (self.truth.low < self.truth.high)[self.learned] & (self.truth.deviation[self.learned] > 0)

    @property
    def varies(self) -> bool:
        """Whether any learned column of the truth varies."""
        return bool(self._varies.any())

    @cached_property
    def _of_mean(self) -> np.ndarray:
        """Squared error of the training mean summed over rows, ``(C,)``."""
        shift = (self.truth.mean - self.statistics.mean)[self.learned]
        return np.where(self._varies, self.truth.deviation[self.learned], 0.0) + self.truth.count * np.square(shift)

    def _skill(self, error: np.ndarray) -> np.ndarray:
        """Skill by column ``(C,)`` of squared errors summed over rows."""
        rows = max(self.truth.count, 1)
        return skill_of(error / rows, self._of_mean / rows, self._unit / rows)

    @property
    def attainable(self) -> float:
        """Skill of a perfect emulator on these rows."""
        return float(self._skill(np.zeros_like(self._unit)).mean())

    @cached_property
    def falls_back(self) -> np.ndarray:
        """bool ``(C,)``: columns that no member predicts better than the training mean."""
        own = np.diagonal(self.products, axis1=1, axis2=2).min(axis=1)
        return (own >= self._of_mean) & (own > 0)

    def unexplained(self, group: str | None = None) -> np.ndarray:
        """Mean over the columns of a group, or over all, of ``E_c`` in the unit of skill, ``(M, M)``: with weights ``w`` skill is what is
        attainable less ``w' A w``, but for the bound at -1.

        Columns that fall back to the training mean are left out. 0 where no column of the group is left.
        """
        columns = (self._unit > 0) & ~self.falls_back
        if group is not None:
            columns &= self.targets.group(group)[self.learned]
        if not columns.any():
            return np.zeros((self.members, self.members))
        return (self.products[columns] / self._unit[columns][:, None, None]).mean(axis=0)

    def skill(self, weights: np.ndarray, fallback: np.ndarray | None = None) -> float:
        """Skill of the ensemble with ``weights (M, t)``, before the physics; the training mean in columns of ``fallback (C,)``."""
        chosen = weights[:, self.learned].T
        error = np.einsum("cm,cmk,ck->c", chosen, self.products, chosen)
        skill = self._skill(error)
        return without_rounding(float((skill if fallback is None else np.where(fallback, 0.0, skill)).mean()))

    def correlation(self) -> np.ndarray:
        """Correlation of the members' errors about 0, ``(M, M)``, mean over columns that vary; 0 of a member without error."""
        products = self.products[self._varies]
        size = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
        scale = size[:, :, None] * size[:, None, :]
        correlation = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0).mean(axis=0)
        np.fill_diagonal(correlation, 1.0)
        return correlation

    def of_members(self, kept: list[int]) -> ErrorProducts:
        """The same of some of the members."""
        return ErrorProducts(self.products[:, kept][:, :, kept], self.statistics, self.truth)


def names_of(targets: Targets, columns: np.ndarray) -> list[str]:
    """Names of learned columns by a mask ``(C,)`` of them."""
    return [targets.columns[place] for place in np.flatnonzero(targets.learned)[columns]]
