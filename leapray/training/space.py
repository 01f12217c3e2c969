"""The search space of a sweep: which values a trial has.

Drawn values are a pure function of the space, the seed and the trial's number, so that an interrupted sweep draws the same trials again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from leapray.errors import UserError

if TYPE_CHECKING:
    import optuna

_DIGITS = 6


class Dimension(Protocol):
    """What one searched key may be: exactly one of these is not None. Both ends of a range belong to it."""

    @property
    def choice(self) -> Sequence[Any] | None: ...
    @property
    def grid(self) -> Sequence[Any] | None: ...
    @property
    def uniform(self) -> tuple[float, float] | None: ...
    @property
    def loguniform(self) -> tuple[float, float] | None: ...
    @property
    def integer(self) -> tuple[int, int] | None: ...


Space = Mapping[str, Dimension]
Values = dict[str, Any]
"""By key, what YAML and json hold; floats with 6 significant digits, so that a recipe reads well."""


def grid_size(space: Space) -> int:
    """Points of the full product of the grid dimensions; 1 without any."""
    return math.prod(len(dimension.grid) for dimension in space.values() if dimension.grid is not None)


def draw(space: Space, number: int, trials: int, seed: int) -> Values:
    """Values of trial ``number`` of ``trials``, counted from 0.

    Trials go through the grid point by point and, if there are more, again; everything else is drawn at random. Neither the order of the
    space's keys nor ``trials`` changes what a number gets, so that a sweep can grow. Raises ValueError for a number that is not a trial's.
    """
    if not 0 <= number < trials:
        raise ValueError(f"trial {number} is not one of {trials}")
    rng = np.random.default_rng([seed, number])
    point, values = number, {}
    # copies of options, for an override inside one must not change the space
    for key, dimension in sorted(space.items()):
        if dimension.grid is not None:
            point, index = divmod(point, len(dimension.grid))
            values[key] = copy.deepcopy(dimension.grid[index])
        else:
            values[key] = _random(dimension, rng)
    return {key: values[key] for key in space}


def _random(dimension: Dimension, rng: np.random.Generator) -> Any:
    if dimension.choice is not None:
        return copy.deepcopy(dimension.choice[int(rng.integers(len(dimension.choice)))])
    if dimension.uniform is not None:
        return _readable(rng.uniform(*dimension.uniform), dimension.uniform)
    if dimension.loguniform is not None:
        low, high = dimension.loguniform
        return _readable(math.exp(rng.uniform(math.log(low), math.log(high))), dimension.loguniform)
    assert dimension.integer is not None
    return int(rng.integers(*dimension.integer, endpoint=True))


def _readable(value: float, ends: tuple[float, float]) -> float:
    """The value with few digits, which must not lead out of its range."""
    low, high = ends
    return min(max(float(f"{value:.{_DIGITS}g}"), float(low)), float(high))


class OptunaSampler:
    """Optuna's tree-structured Parzen estimator, asked for a trial's values and told of its score. Raises UserError without Optuna.

    A suggestion is a function of the space, the seed, the trial's number and what is known of the others. Grid dimensions are choices here.
    """

    def __init__(self, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError("a search by optuna needs an extra, pip install 'leapray[optuna]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        self._distributions = {key: self._distribution(dimension) for key, dimension in sorted(space.items())}
        self._study = optuna.create_study(direction="maximize")
        self._running: dict[int, tuple[optuna.Trial, Values]] = {}

    def restore(self, finished: Iterable[tuple[Mapping[str, Any], float]]) -> None:
        """Tell of trials of an earlier start: their values and scores. Raises UserError for values that are not of this space."""
        for values, score in finished:
            self._study.add_trial(self._trial(values, score))

    def suggest(self, number: int, values: Mapping[str, Any] | None = None) -> Values:
        """Values for trial ``number``, which is running from now on until it is told of or forgotten.

        An interrupted trial is taken up again with the ``values`` that it has; UserError if they are not of this space.
        """
        if values is not None:
            self._study.enqueue_trial(self._trial(values).params)
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        # its own seed for each, or a sweep that goes on would begin with the same random trials again
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)
        trial = self._study.ask(self._distributions)
        suggested = {key: self._value(dimension, trial.params[key]) for key, dimension in self._space.items()}
        self._running[number] = trial, copy.deepcopy(suggested)
        return suggested

    def tell(self, number: int, score: float) -> None:
        """The best score that a suggested trial reached, whether it ran to its end or was stopped."""
        # with its few digits, so that a search that is restored goes on exactly alike
        self.restore([(self.forget(number), score)])

    def forget(self, number: int) -> Values:
        """End a suggested trial that brought no score; its values."""
        trial, values = self._running.pop(number)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return values

    def _distribution(self, dimension: Dimension) -> optuna.distributions.BaseDistribution:
        distributions = self._optuna.distributions
        if (options := _options(dimension)) is not None:
            # by index, for Optuna takes neither lists nor mappings
            return distributions.CategoricalDistribution(range(len(options)))
        if dimension.integer is not None:
            return distributions.IntDistribution(*dimension.integer)
        if dimension.loguniform is not None:
            return distributions.FloatDistribution(*dimension.loguniform, log=True)
        assert dimension.uniform is not None
        return distributions.FloatDistribution(*dimension.uniform)

    def _value(self, dimension: Dimension, param: Any) -> Any:
        if (options := _options(dimension)) is not None:
            return copy.deepcopy(options[param])
        ends = dimension.uniform or dimension.loguniform
        return _readable(param, ends) if ends else int(param)

    def _trial(self, values: Mapping[str, Any], score: float = 0.0) -> optuna.trial.FrozenTrial:
        """A finished trial, checked."""
        try:
            params = {key: self._param(key, values[key]) for key in self._distributions}
            return self._optuna.trial.create_trial(params=params, distributions=self._distributions, value=score)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"an earlier trial has {dict(values)}, which is not of this search space ({error})") from error

    def _param(self, key: str, value: Any) -> Any:
        """Inverse of :meth:`_value`. Raises ValueError for a value that is no option."""
        options = _options(self._space[key])
        return value if options is None else options.index(value)


def _options(dimension: Dimension) -> Sequence[Any] | None:
    """What a dimension lists, if it does."""
    return dimension.choice if dimension.choice is not None else dimension.grid
