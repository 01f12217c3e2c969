"""A deterministic synthetic climate in ClimSim's variables: inputs, outputs and the attainable score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from leapray.climsim.schema import FLUXES, KAGGLE, STATE, STEP_SECONDS, TENDENCIES
from leapray.climsim.synthetic.calibration import coefficients
from leapray.climsim.synthetic.climate import Climate
from leapray.climsim.synthetic.physics import Budget, SubGridNoise, step_physics
from leapray.climsim.synthetic.place import make_place
from leapray.errors import UserError


class World:
    """A synthetic climate; everything is a pure function of kind, columns, seed and step.

    Another seed is other weather in the same climate, under the same hidden physics. Steps are absolute (1 200 s since 0001-02-01 00000).
    ``columns`` fewer than the kind has are spread evenly. Raises UserError for an unknown kind or an impossible number of columns.
    """

    def __init__(self, kind: str, columns: int | None = None, seed: int = 0) -> None:
        if seed < 0:
            raise UserError(f"seed = {seed} is negative, a seed is 0 or more")
        self.kind, self.seed = kind, seed
        self.place = make_place(kind, columns)
        self._climate = Climate(kind, self.place, seed)
        self._noise = lru_cache(lambda realization: SubGridNoise(self.place.points, seed, realization))
        self._state = lru_cache(maxsize=1)(self._climate.at)

    @property
    def columns(self) -> int:
        return len(self.place.latitude)

    def inputs(self, step: int) -> dict[str, np.ndarray]:
        """Every variable of an mli file at a step: profiles ``(60, n)``, scalars ``(n,)``, float64."""
        return {name: value.copy() for name, value in self._state(step).items()}

    def outputs(self, step: int, realization: int = 0) -> dict[str, np.ndarray]:
        """Every variable of an mlo file at a step, the states after the physics; ``realization`` picks a draw of the sub-grid part."""
        return self.outputs_and_budget(step, realization)[0]

    def outputs_and_budget(self, step: int, realization: int = 0) -> tuple[dict[str, np.ndarray], Budget]:
        """The outputs with the latent heating and radiative convergence of each column."""
        return step_physics(self._state(step), coefficients(), self._noise(realization).at(step))

    def targets(self, step: int, realization: int = 0) -> np.ndarray:
        """The flat targets ``(n, t)`` of a step, tendencies ``(after - before) / 1200 s``."""
        before, after = self._state(step), self.outputs(step, realization)
        flat = np.empty((self.columns, KAGGLE.targets.width))
        for state, tendency in zip(STATE, TENDENCIES, strict=True):
            flat[:, KAGGLE.targets[tendency.name]] = ((after[state.name] - before[state.name]) / STEP_SECONDS).T
        for flux in FLUXES:
            flat[:, KAGGLE.targets[flux.name]] = after[flux.name][:, None]
        return flat

    def ceiling(self, steps: Sequence[int]) -> np.ndarray:
        """Attainable R2 ``(t,)`` on the given steps, pooled over time and column; 1 where a target is constant.

        What no model can explain is the variance between two sub-grid draws on equal inputs: ``mean((y1 - y2)^2) / 2``.
        """
        rows, shift = 0, self.targets(steps[0]).mean(axis=0)
        total, squares, irreducible = np.zeros((3, KAGGLE.targets.width))
        low, high = np.full(KAGGLE.targets.width, np.inf), np.full(KAGGLE.targets.width, -np.inf)
        for step in steps:
            one, other = self.targets(step, 0), self.targets(step, 1)
            both = np.concatenate([one, other])
            rows += len(both)
            total += (both - shift).sum(axis=0)
            squares += np.square(both - shift).sum(axis=0)
            irreducible += np.square(one - other).sum(axis=0)
            low, high = np.minimum(low, both.min(axis=0)), np.maximum(high, both.max(axis=0))
        # half of the mean squared difference, over half as many pairs as rows
        explained = 1.0 - irreducible / np.where(low == high, 1.0, squares - total**2 / rows)
        return np.where(low == high, 1.0, explained)
