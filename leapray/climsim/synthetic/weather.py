"""Smooth random fields on the sphere, pure functions of a seed and a step: the weather and the sub-grid noise of a synthetic world."""

from __future__ import annotations

import numpy as np

from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.schema import LEVELS


class WaveField:
    """Independent Gaussian patterns, each a sum of random plane waves ``cos(k.x + omega t + phi)`` of the unit vector x.

    Covariance is close to ``exp(-(d / length)^2 / 2 - (t / days)^2 / 2)``; the frequencies are incommensurate, so nothing repeats.
    All patterns share the wave vectors, so that one step is one small matrix product.
    """

    def __init__(self, points: np.ndarray, patterns: int, seed: tuple[int, ...], *, length: float, days: float, waves: int = 96) -> None:
        rng = np.random.default_rng(seed)
        phase_of_place = points @ (rng.normal(size=(3, waves)) / length)
        self._basis = np.concatenate([np.cos(phase_of_place), np.sin(phase_of_place)], axis=1) * np.sqrt(2 / waves)
        self._frequency = rng.normal(size=(waves, patterns)) / (days * STEPS_PER_DAY)
        self._phase = rng.uniform(0, 2 * np.pi, size=(waves, patterns))

    def at(self, step: int) -> np.ndarray:
        """``(patterns, n)`` at an absolute step: mean 0, variance 1 over time."""
        angle = self._frequency * step + self._phase
        return (self._basis @ np.concatenate([np.cos(angle), -np.sin(angle)])).T


def vertical_loadings(patterns: int, width: float) -> np.ndarray:
    """``(60, patterns)``: each level is a unit-norm mix of the patterns centred within about ``width`` levels of it."""
    centres = np.linspace(0, LEVELS - 1, patterns)
    bumps = np.exp(-0.5 * ((np.arange(LEVELS)[:, None] - centres) / width) ** 2)
    return bumps / np.linalg.norm(bumps, axis=1, keepdims=True)
