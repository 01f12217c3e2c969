"""What a network has to beat: the mean of the training targets, and ridge regression, both streamed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class Climatology:
    """Predicts the mean of the targets it has seen, whatever the inputs."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | float = 0.0

    def update(self, targets: np.ndarray) -> None:
        """Take in targets ``(n, T)``."""
        self.count += len(targets)
        if len(targets):
            self.mean = self.mean + (targets.mean(axis=0, dtype=np.float64) - self.mean) * (len(targets) / self.count)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """The mean for each of ``n`` rows, ``(n, T)`` float64."""
        return np.broadcast_to(self.mean, (len(inputs), np.size(self.mean))).copy()


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

    def __init__(self, alpha: float = 1.0) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha is {alpha}; it must be above 0, since constant inputs leave the equations singular")
        self.alpha = alpha
        self.count = 0
        self._input_mean: np.ndarray | float = 0.0
        self._target_mean: np.ndarray | float = 0.0
        self._gram: np.ndarray | float = 0.0
        self._cross: np.ndarray | float = 0.0

    def update(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Take in scaled inputs ``(n, I)`` and targets ``(n, T)``."""
        if not len(inputs):
            return
        x, y = inputs.astype(np.float64), targets.astype(np.float64)
        x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
        x_shift, y_shift = x_mean - self._input_mean, y_mean - self._target_mean
        share = len(x) / (self.count + len(x))
        x -= x_mean
        y -= y_mean
        self._gram = self._gram + x.T @ x + np.outer(x_shift, x_shift) * (self.count * share)
        self._cross = self._cross + x.T @ y + np.outer(x_shift, y_shift) * (self.count * share)
        self._input_mean = self._input_mean + x_shift * share
        self._target_mean = self._target_mean + y_shift * share
        self.count += len(x)

    def solve(self) -> LinearModel:
        """The coefficients that the rows seen so far give. Raises ValueError without rows."""
        if not self.count:
            raise ValueError("ridge regression has seen no rows")
        gram = np.asarray(self._gram)
        coefficients = np.linalg.solve(gram + self.alpha * np.eye(len(gram)), np.asarray(self._cross))
        return LinearModel(coefficients, self._target_mean - np.asarray(self._input_mean) @ coefficients)
