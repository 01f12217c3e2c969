"""What a network has to beat: the mean of the training targets, and ridge regression, both streamed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinearModel:
    """``inputs @ coefficients + intercept``: coefficients ``(I, T)``, intercept ``(T,)``, float64."""

    coefficients: np.ndarray
    intercept: np.ndarray

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Predictions ``(n, T)`` float64 for inputs ``(n, I)``."""
        prediction: np.ndarray = inputs.astype(np.float64) @ self.coefficients + self.intercept
        return prediction


class Ridge:
    """Ridge regression with an intercept from batches: minimises ``|Y - X B - b|^2 + alpha |B|^2``, ``b`` not penalised.

    Only the centred normal equations are kept, merged about the means (Chan et al. 1983), so memory does not grow with rows.
    Inputs should be scaled, since ``alpha`` weighs all of them alike.
    """

    def __init__(self) -> None:
        self.count = 0
        self._input_mean: np.ndarray | float = 0.0
        self._target_mean: np.ndarray | float = 0.0
        self._gram: np.ndarray | float = 0.0
        self._cross: np.ndarray | float = 0.0

    @classmethod
    def of(cls, inputs: np.ndarray, targets: np.ndarray) -> Ridge:
        """Of scaled inputs ``(n, I)`` and targets ``(n, T)``."""
        part = cls()
        if len(inputs):
            x, y = inputs.astype(np.float64), targets.astype(np.float64)
            part.count, part._input_mean, part._target_mean = len(x), x.mean(axis=0), y.mean(axis=0)
            x -= part._input_mean
            y -= part._target_mean
            part._gram, part._cross = x.T @ x, x.T @ y
        return part

    def update(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Take in scaled inputs ``(n, I)`` and targets ``(n, T)``."""
        self.merge(self.of(inputs, targets))

    def merge(self, other: Ridge) -> None:
        """Take in the rows of another."""
        if not other.count:
            return
        x_shift, y_shift = other._input_mean - self._input_mean, other._target_mean - self._target_mean
        share = other.count / (self.count + other.count)
        self._gram = self._gram + other._gram + np.outer(x_shift, x_shift) * (self.count * share)
        self._cross = self._cross + other._cross + np.outer(x_shift, y_shift) * (self.count * share)
        self._input_mean = self._input_mean + x_shift * share
        self._target_mean = self._target_mean + y_shift * share
        self.count += other.count

    def solve(self, alpha: float) -> LinearModel:
        """The coefficients that the rows seen so far give. Raises ValueError without rows, or if ``alpha`` is not above 0."""
        if alpha <= 0:
            raise ValueError(f"alpha is {alpha}; it must be above 0, since constant inputs leave the equations singular")
        if not self.count:
            raise ValueError("no rows to fit")
        gram = np.asarray(self._gram)
        return self._with(np.linalg.solve(gram + alpha * np.eye(len(gram)), np.asarray(self._cross)))

    def climatology(self) -> LinearModel:
        """The mean of the targets, whatever the inputs. Raises ValueError without rows."""
        if not self.count:
            raise ValueError("no rows to fit")
        return self._with(np.zeros_like(self._cross))

    def _with(self, coefficients: np.ndarray) -> LinearModel:
        return LinearModel(coefficients, self._target_mean - np.asarray(self._input_mean) @ coefficients)
