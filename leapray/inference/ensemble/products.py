"""What solving for weights needs of truth and predictions, streamed: products of the members' errors by column, merged exactly.

Shapes: M members, C = 293 learned columns, n rows. With weights ``w`` the ensemble's squared error in column c, summed over rows, is
``w' E_c w`` with ``E_c[m, k] = sum (f_m - y) (f_k - y)``: rows are read once, whatever weights are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from leapray.climsim.schema import LEARNED
from leapray.evaluation.groups import group_mask
from leapray.evaluation.metrics import ErrorMoments


@dataclass
class ErrorProducts:
    """``products (C, M, M)`` and the moments of the truth; ``+`` merges those of two parts of a set."""

    products: np.ndarray
    truth: ErrorMoments = field(default_factory=ErrorMoments)
    """Of the truth, beside the plain mean of the members."""

    @classmethod
    def empty(cls, members: int) -> ErrorProducts:
        return cls(np.zeros((int(LEARNED.sum()), members, members)))

    @classmethod
    def of(cls, truth: np.ndarray, predictions: np.ndarray) -> ErrorProducts:
        """Of one batch: truth ``(n, 368)`` and predictions ``(M, n, 368)``, physical."""
        errors = predictions.transpose(2, 0, 1)[LEARNED] - truth.T[LEARNED][:, None]
        return cls(errors @ errors.swapaxes(1, 2), ErrorMoments.of(truth, predictions.mean(axis=0)))

    def __add__(self, other: ErrorProducts) -> ErrorProducts:
        return ErrorProducts(self.products + other.products, self.truth + other.truth)

    @property
    def members(self) -> int:
        return self.products.shape[1]

    @property
    def varying(self) -> np.ndarray:
        """bool ``(C,)``: columns whose truth has a variance, without which there is no R2."""
        return (self.truth.low < self.truth.high)[LEARNED] & (self._deviation > 0)

    @property
    def _deviation(self) -> np.ndarray:
        """Sum of the squared deviations of each learned column of the truth, ``(C,)``."""
        return self.truth.deviation[LEARNED]

    def unexplained(self, group: str | None = None) -> np.ndarray:
        """Mean over the columns of a group, or over all, of ``E_c / Var_c``, ``(M, M)``: with weights ``w``, mean 1 - R2 is ``w' A w``.

        0 where no column of the group varies.
        """
        columns = self.varying if group is None else self.varying & group_mask(group)[LEARNED]
        if not columns.any():
            return np.zeros((self.members, self.members))
        return (self.products[columns] / self._deviation[columns][:, None, None]).mean(axis=0)

    def r2(self, weights: np.ndarray) -> float:
        """Mean R2 over the varying learned columns of the ensemble with ``weights (M, 368)``."""
        columns = self.varying
        chosen = weights[:, LEARNED].T[columns]
        error = np.einsum("cm,cmk,ck->c", chosen, self.products[columns], chosen)
        return float(1 - (error / self._deviation[columns]).mean())

    def correlation(self) -> np.ndarray:
        """Correlation of the members' errors about 0, mean over columns, ``(M, M)``; a member without error correlates with none."""
        products = self.products[self.varying]
        size = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
        scale = size[:, :, None] * size[:, None, :]
        correlation = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0).mean(axis=0)
        np.fill_diagonal(correlation, 1.0)
        return correlation

    def of_members(self, kept: list[int]) -> ErrorProducts:
        """The same of some of the members."""
        return ErrorProducts(self.products[:, kept][:, :, kept], self.truth)
