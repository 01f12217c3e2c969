"""Fitting a transform: the scalings by name, and what a pass over the training rows collects for them.

A *departure* is defined in :mod:`leapray.data.transform`. Shapes: n rows; columns of a fit are the network's inputs, engineered features,
targets, and departures of the targets that may be learned so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import PositiveFloat

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import GASES, STEP_SECONDS, Layout, Targets, VariableSet
from leapray.data.features import EngineeredFeatures, InputVariables, channels, check_features
from leapray.data.moments import Moments
from leapray.data.scaling import ColumnScaling, log_columns
from leapray.data.transform import Transform, departure_candidates, origin_of
from leapray.evaluation.metrics import VARYING, TargetStatistics
from leapray.recipe import Choice
from leapray.registry import Options, Registry

LOG_VARIABLES = ("state_q0001", "state_q0002", "state_q0003", *(gas.name for gas in GASES))
"""Variables of many magnitudes, whose logarithm ``log-per-variable`` takes, as the competition's 5th place did for high-res."""
_FLOAT32_STEPS = 128
"""Steps of float32 that a standard deviation must hold, so that rounding to float32 moves no column by a hundredth of it."""
_MUCH_LESS = 0.5
"""Share of a column's variance below which its departure is learned; by chance it can be a little less than all."""
_NO_SPREAD = 1e-10
"""Spread of a departure, as a share of the column's own, that is rounding."""


@dataclass(frozen=True)
class Scaling:
    """How inputs are scaled: variables that go through the logarithm, and the fit on the moments of what comes out of it.

    The fit takes the layout of a network's inputs, of which the last few may be engineered features, and how many of them are not.
    """

    log_variables: tuple[str, ...]
    fit_inputs: Callable[[Moments, Layout, int], ColumnScaling]
    departures: bool = False
    """Whether water columns may be learned as departures."""


class StandardOptions(Options):
    clip: PositiveFloat | None = 30.0
    """Soft-clip bound of inputs, in standard deviations; none keeps them as they are."""
    departures: bool = True
    """Learn a water column as its departure from ``-state / 1200`` where that varies much less."""


class ReferenceOptions(Options):
    floor: PositiveFloat = 1e-6
    """Smallest standard deviation: the original's floor, which hides 235 inputs."""


class LogPerVariableOptions(Options):
    clip: PositiveFloat | None = 100.0
    """Soft-clip bound of inputs, in standard deviations. No recorded extreme reaches it (the farthest, the surface stress of high-res
    in low-res scaling, is at 86), so that real columns get the original's numbers and what is not real stays bounded."""
    departures: bool = True
    """Learn a water column as its departure from ``-state / 1200`` where that varies much less."""
    added: PositiveFloat = 1e-10
    """Added to every standard deviation of the inputs, as the original does."""


def _standard(options: StandardOptions) -> Scaling:
    def fit(moments: Moments, inputs: Layout, own: int) -> ColumnScaling:
        return _by_std(moments, _constant(moments) | _beyond_float32(moments), options.clip or 0.0)

    return Scaling((), fit, options.departures)


def _reference(options: ReferenceOptions) -> Scaling:
    def fit(moments: Moments, inputs: Layout, own: int) -> ColumnScaling:
        std = np.maximum(moments.std, options.floor)
        return _scaling(moments.mean, std, np.zeros(len(std), bool))

    return Scaling((), fit)


def _log_per_variable(options: LogPerVariableOptions) -> Scaling:
    """One mean and standard deviation for all levels of a profile variable, after the logarithm where it has one.

    A level that is constant is kept where its variable is not: it lies within the variable's spread, and its place in the profile
    means something.
    """

    def fit(moments: Moments, inputs: Layout, own: int) -> ColumnScaling:
        mean, std, constant = moments.mean.copy(), moments.std, _constant(moments)
        for variable in inputs.profiles:
            columns = inputs[variable.name]
            if columns.start >= own:
                # an engineered feature is scaled by level
                continue
            pooled = moments[columns].pooled()
            mean[columns], std[columns], constant[columns] = pooled.mean, pooled.std, _constant(pooled)
        std[:own] += options.added
        log = inputs.mask(name for name in LOG_VARIABLES if name in inputs)
        return _scaling(mean, std, constant, options.clip or 0.0, log)

    return Scaling(LOG_VARIABLES, fit, options.departures)


def _by_std(moments: Moments, masked: np.ndarray, clip: float = 0.0) -> ColumnScaling:
    return _scaling(moments.mean, moments.std, masked, clip)


def _constant(moments: Moments) -> np.ndarray:
    # below 1e-154 a variance underflows: nothing is left to scale by
    return moments.constant | (moments.std == 0)


def _beyond_float32(moments: Moments) -> np.ndarray:
    """Columns whose spread float32 cannot hold: a climate model passes float32, in which nothing is left of them."""
    info = torch.finfo(torch.float32)
    return moments.std < _FLOAT32_STEPS * np.maximum(info.tiny, info.eps * np.abs(moments.mean))


def _scaling(mean: np.ndarray, std: np.ndarray, constant: np.ndarray, clip: float = 0.0, log: np.ndarray | None = None) -> ColumnScaling:
    scale = np.where(constant, 1.0, std)
    return ColumnScaling(
        torch.from_numpy(mean), torch.from_numpy(scale), torch.from_numpy(constant), clip, None if log is None else torch.from_numpy(log)
    )


SCALINGS: Registry[Scaling] = Registry(
    "data.scaling",
    {
        "standard": (StandardOptions, _standard),
        "reference": (ReferenceOptions, _reference),
        "log-per-variable": (LogPerVariableOptions, _log_per_variable),
    },
)


class Fitting:
    """What a statistics pass needs to know of a recipe's scaling and features. Raises UserError for an unknown name or option."""

    def __init__(self, variables: VariableSet, scaling: Choice, features: Sequence[str] = ()) -> None:
        self.variables = variables
        self.name = scaling.name
        self.options = SCALINGS.options(scaling).model_dump()
        self.features = check_features(features, variables)
        scaler = SCALINGS.build(scaling)
        self.log_variables, self._fit_inputs = scaler.log_variables, scaler.fit_inputs
        self._inputs = channels(variables, self.features).inputs
        self.inputs_width = self._inputs.width
        self._stop = self.inputs_width + variables.targets.width
        candidates = departure_candidates(variables) if scaler.departures else []
        self._candidates, self._states = variables.targets.places(candidates), variables.source_of(candidates)
        self.width = self._stop + len(candidates)
        """Columns that are fitted: a network's inputs, targets, departures."""
        self._input_variables = InputVariables(variables)
        self.raw = self._input_variables.as_they_are and not (self.features or self.log_variables)
        """Whether these are the raw columns and what :meth:`raw_columns` adds to them."""
        self._engineered = EngineeredFeatures(self.features, variables.raw)

    def columns(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Float64 ``(n, width)``, column by column (F order), after features and logarithm; moments of it are what :meth:`fit` takes.

        ``inputs`` are raw columns, float64 ``(n, i)``, and ``targets`` ``(n, t)``, of any memory layout.
        """
        columns = np.empty((len(inputs), self.width), order="F")
        columns[:, self.inputs_width : self._stop] = targets
        if self.width > self._stop:
            np.add(inputs[:, self._states] / STEP_SECONDS, targets[:, self._candidates], out=columns[:, self._stop :])
        # a copy, since torch takes no array that cannot be written to
        raw = torch.from_numpy(np.array(inputs, order="K"))
        start = 0
        for part in [*self._input_variables(raw), *self._engineered(raw)]:
            columns[:, start : start + part.shape[1]] = part.numpy()
            start += part.shape[1]
        for name in self.log_variables:
            if name in self._inputs:
                own = columns[:, self._inputs[name]]
                own[:] = log_columns(torch.from_numpy(own)).numpy()
        return columns

    def raw_columns(self, columns: Sequence[np.ndarray] | np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """The same as :meth:`columns`, of raw columns ``(n,)`` in the order of the flat layout, where ``raw`` says that they are enough."""
        if self.width == self._stop:
            return columns
        targets = self._candidates + self.inputs_width
        return [
            *columns,
            *(
                columns[source] / STEP_SECONDS + columns[target]
                for source, target in zip(self._states.tolist(), targets.tolist(), strict=True)
            ),
        ]

    def fit(self, moments: Moments, fitted_on: Mapping[str, Any]) -> Transform:
        """The transform from the moments of all :meth:`columns` of the training rows; ``fitted_on`` says which rows they were.

        Without moments of the departures, which a csv of statistics does not have, every target is learned as it is.
        """
        own = self.variables.inputs.width
        inputs = self._fit_inputs(moments[: self.inputs_width], self._inputs, own)
        targets = moments[self.inputs_width : self._stop]
        layout = self.variables.targets
        statistics = TargetStatistics(layout, targets.mean, np.square(targets.std), origin_of(fitted_on))
        learned, departed = targets, np.zeros(layout.width, bool)
        if len(moments.mean) > self._stop:
            learned, departed = _with_departures(layout, targets, moments[self._stop :], self._candidates)
        # a departure that is 0 in netCDF may be rounding in files that were written as text
        rounding = departed & (learned.maximum - learned.minimum <= _NO_SPREAD * (targets.maximum - targets.minimum))
        return Transform(
            self.variables,
            inputs,
            _by_std(learned, _constant(learned) | rounding),
            self.name,
            fitted_on,
            self.features,
            self.options,
            statistics=statistics,
            departures=[column for column, departs in zip(layout.columns, departed, strict=True) if departs],
        )


def _with_departures(layout: Targets, targets: Moments, departures: Moments, candidates: np.ndarray) -> tuple[Moments, np.ndarray]:
    """Moments of what is learned of each target, the departure where it varies much less, and a mask ``(t,)`` of those columns."""
    departed = np.zeros(layout.width, bool)
    telling = layout.mask(name for name in ("ptend_q0002",) if name in layout)
    telling |= targets.m2 >= VARYING * np.square(competition_columns(layout).std) * targets.count
    chosen = (departures.m2 < _MUCH_LESS * targets.m2[candidates]) & telling[candidates]
    departed[candidates] = chosen

    def mixed(name: str) -> np.ndarray:
        values = getattr(targets, name).copy()
        values[departed] = getattr(departures, name)[chosen]
        return values

    return Moments(targets.count, *(mixed(name) for name in ("mean", "m2", "minimum", "maximum"))), departed
