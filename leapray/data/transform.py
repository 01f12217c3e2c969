"""From raw columns to a network's numbers and back: fitted once, saved as ``transform.json``, the one implementation everywhere.

The data plane, the emulator and the export all run this float64 torch module; only its result is float32.
Shapes: b rows; i = 556 raw inputs, s = 556 + 60 F scaled ones with F engineered features, t = 368 targets.

A *departure* is what a water tendency differs by from losing all of the water in one step, ``ptend_q + state_q / 1200``. Cloud liquid of
cold levels is lost so in nearly every row, and there the departure is what is left to learn: a column is learned as its departure
where that has less than half of the column's variance over the training rows. A column of vapour or ice must also vary in these rows: what
is silent there says nothing of months in which it is not, while cold air holds no liquid in any month.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import GASES, INPUTS, LEARNED, LEVELS, STEP_SECONDS, TARGETS, schema_hash
from leapray.data.features import EngineeredFeatures, check_features
from leapray.data.moments import Moments
from leapray.data.scaling import ColumnScaling, log_columns
from leapray.errors import UserError
from leapray.evaluation.metrics import VARYING, TargetStatistics
from leapray.faults import told
from leapray.recipe import Choice
from leapray.registry import Options, Registry

LOG_VARIABLES = ("state_q0001", "state_q0002", "state_q0003", *(gas.name for gas in GASES))
"""Variables of many magnitudes, whose logarithm ``log-per-variable`` takes (FACTS section 4d)."""
_FLOAT32_STEPS = 128
"""Steps of float32 that a standard deviation must hold, so that rounding to float32 moves no column by a hundredth of it."""
STATE_WATER, TENDENCY_WATER = (tuple(f"{kind}_{name}" for name in ("q0001", "q0002", "q0003")) for kind in ("state", "ptend"))
_CANDIDATE_MASK = LEARNED & TARGETS.mask(TENDENCY_WATER)
CANDIDATES = tuple(column for column, candidate in zip(TARGETS.columns, _CANDIDATE_MASK, strict=True) if candidate)
"""Target columns that may be learned as departures: the learned ones of the three water species."""
_SOURCES = np.array([INPUTS.columns.index(column.replace("ptend", "state")) for column in CANDIDATES])
"""The state that each of them may lose, as a place among the inputs."""
_LIQUID = TARGETS.mask(["ptend_q0002"])
_MUCH_LESS = 0.5
"""Share of a column's variance below which its departure is learned; by chance it can be a little less than all."""
_NO_SPREAD = 1e-10
"""Spread of a departure, as a share of the column's own, that is rounding."""
_BLOCK_ROWS = 256
"""Rows that are scaled at a time on a CPU, so that what lies between raw and scaled stays in a core's cache."""


class Transform(nn.Module):
    """Scaling of raw inputs, with the engineered features that follow them, and of targets, with what it was fitted on."""

    departed: Tensor

    def __init__(
        self,
        inputs: ColumnScaling,
        targets: ColumnScaling,
        scaling: str,
        fitted_on: Mapping[str, Any],
        features: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        *,
        statistics: TargetStatistics | None = None,
        departures: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.targets = targets
        """Of what is learned: departures where ``departures`` names the column."""
        self.statistics = statistics or _statistics_of(targets, fitted_on)
        """Mean and variance of the physical targets over the training rows; by default what targets are scaled by."""
        self.departures = list(departures)
        self.departs = len(self.departures) > 0
        self.step_seconds = float(STEP_SECONDS)
        self.state_start, self.state_stop = INPUTS[STATE_WATER[0]].start, INPUTS[STATE_WATER[-1]].stop
        self.water_start, self.water_stop = TARGETS[TENDENCY_WATER[0]].start, TARGETS[TENDENCY_WATER[-1]].stop
        self.truths = _unmasked(targets)
        """The targets' scaling with a unit for constant columns too: what varies in other rows only is not lost in theirs."""
        self.water_inputs = inputs.columns(self.state_start, self.state_stop)
        water = TARGETS.columns[self.water_start : self.water_stop]
        self.register_buffer("departed", torch.tensor([column in self.departures for column in water]), persistent=False)
        self.engineered = EngineeredFeatures(features)
        self.features = len(features)
        """Engineered profiles that follow the 556 inputs."""
        self.feature_names = list(check_features(features))
        self.scaling = scaling
        self.options = dict(options or {})
        self.fitted_on = dict(fitted_on)
        self.block_rows = _BLOCK_ROWS

    @torch.jit.export
    def scale_inputs(self, x_bi: Tensor) -> Tensor:
        """Raw columns ``(b, 556)``, best float64, to the network's C-contiguous float32 ``(b, 556 + 60 F)``; fastest column by column."""
        if self._whole(x_bi):
            return self._scale_inputs(x_bi).contiguous()
        z_bs = torch.empty([x_bi.shape[0], self.inputs.mean.numel()], dtype=torch.float32, device=x_bi.device)
        for start in range(0, x_bi.shape[0], self.block_rows):
            z_bs[start : start + self.block_rows] = self._scale_inputs(x_bi[start : start + self.block_rows])
        return z_bs

    @torch.jit.export
    def scale_targets(self, y_bt: Tensor, x_bi: Tensor) -> Tensor:
        """Physical tendencies and fluxes ``(b, 368)`` of raw columns ``(b, 556)`` to C-contiguous float32 ``(b, 368)``."""
        if self._whole(y_bt):
            return self._scale_targets(y_bt, x_bi).contiguous()
        z_bt = torch.empty([y_bt.shape[0], self.targets.mean.numel()], dtype=torch.float32, device=y_bt.device)
        for start in range(0, y_bt.shape[0], self.block_rows):
            rows = slice(start, start + self.block_rows)
            z_bt[rows] = self._scale_targets(y_bt[rows], x_bi[rows])
        return z_bt

    def _scale_targets(self, y_bt: Tensor, x_bi: Tensor) -> Tensor:
        if self.departs:
            y_bt = self._shifted(y_bt.to(torch.float64), x_bi[:, self.state_start : self.state_stop].to(torch.float64))
        return self.truths(y_bt).to(torch.float32)

    @torch.jit.export
    def unscale_targets(self, z_bt: Tensor, x_bi: Tensor) -> Tensor:
        """The network's output ``(b, 368)`` for raw columns ``(b, 556)`` to physical float64 ``(b, 368)``."""
        y_bt = self.targets.inverse(z_bt)
        if self.departs:
            y_bt = self._shifted(y_bt, 0.0 - x_bi[:, self.state_start : self.state_stop].to(torch.float64))
        return y_bt

    def _shifted(self, y_bt: Tensor, water: Tensor) -> Tensor:
        """Targets with ``water / 1200`` added to the departed columns, for states of the three water species ``(b, 180)``."""
        own = y_bt[:, self.water_start : self.water_stop]
        shifted = torch.where(self.departed, own + water / self.step_seconds, own)
        return torch.cat([y_bt[:, : self.water_start], shifted, y_bt[:, self.water_stop :]], dim=1)

    def physical_truth(self, z_bt: Tensor, z_bs: Tensor) -> Tensor:
        """Scaled targets ``(b, 368)`` beside scaled inputs ``(b, s)``, as shards hold them, to physical float64 ``(b, 368)``."""
        return self._physical(self.truths, z_bt, z_bs)

    def physical_prediction(self, z_bt: Tensor, z_bs: Tensor) -> Tensor:
        """A network's output ``(b, 368)`` for scaled inputs ``(b, s)`` to physical float64 ``(b, 368)``."""
        return self._physical(self.targets, z_bt, z_bs)

    def _physical(self, scaling: ColumnScaling, z_bt: Tensor, z_bs: Tensor) -> Tensor:
        y_bt = scaling.inverse(z_bt)
        if self.departs:
            y_bt = self._shifted(y_bt, 0.0 - self.water_inputs.inverse(z_bs[:, self.state_start : self.state_stop]))
        return y_bt

    def _scale_inputs(self, x_bi: Tensor) -> Tensor:
        if self.features == 0:
            return self.inputs(x_bi).to(torch.float32)
        # transposed, since columns are what is contiguous in between
        parts = self.engineered(x_bi)
        parts.insert(0, x_bi.to(torch.float64))
        return self.inputs(torch.cat([part.t() for part in parts]).t()).to(torch.float32)

    def _whole(self, x: Tensor) -> bool:
        """Whether rows are best scaled all at once: on an accelerator, and in an exported graph, which cannot hold the loop."""
        return torch.compiler.is_compiling() or x.device.type != "cpu"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that keep every bit; the content of ``transform.json``."""
        return {
            "schema": schema_hash(),
            "scaling": self.scaling,
            "options": self.options,
            "features": list(self.feature_names),
            "fitted_on": self.fitted_on,
            "inputs": self.inputs.to_dict(),
            "targets": self.targets.to_dict(),
            "departures": list(self.departures),
            "statistics": self.statistics.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "transform") -> "Transform":
        """Rebuild from :meth:`to_dict`. Raises UserError for another schema, an unknown feature or wrong shapes."""
        if not isinstance(values, Mapping) or values.get("schema") != schema_hash():
            found = told(values.get("schema")) if isinstance(values, Mapping) else None
            raise UserError(f"{name}: made for schema {found}, but this leapray has schema {schema_hash()}")
        if "statistics" not in values:
            raise UserError(
                f"{name}: made by an earlier leapray, without the statistics that skill needs; prepare the data and train again"
            )
        statistics = TargetStatistics.from_dict(values["statistics"], name)
        try:
            features = values["features"]
            inputs = ColumnScaling.from_dict(values["inputs"], INPUTS.width + LEVELS * len(features), f"{name}: inputs")
            targets = ColumnScaling.from_dict(values["targets"], TARGETS.width, f"{name}: targets")
            if not (math.isfinite(inputs.clip + targets.clip) and min(inputs.clip, targets.clip) >= 0):
                raise ValueError(f"clip {inputs.clip}, {targets.clip}")
            if not isinstance(values["scaling"], str):
                raise TypeError(f"scaling {values['scaling']}")
            departures = values["departures"]
            if unknown := [column for column in departures if column not in CANDIDATES]:
                raise ValueError(f"departure {told(unknown[0])}")
            return cls(
                inputs,
                targets,
                values["scaling"],
                values["fitted_on"],
                features,
                values["options"],
                statistics=statistics,
                departures=departures,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{name}: not a transform, {type(error).__name__} at {told(error, 200)}") from error

    def input_digest(self) -> str:
        """Short hash of what decides the network's inputs: equal where two transforms give the same numbers for the same raw columns."""
        return _digest({"features": self.feature_names, "inputs": self.inputs.to_dict()})

    @classmethod
    def identity(cls) -> "Transform":
        """One that changes nothing, for rows that were never physical."""

        def scaling(width: int) -> ColumnScaling:
            return ColumnScaling(torch.zeros(width), torch.ones(width), torch.zeros(width))

        return cls(scaling(INPUTS.width), scaling(TARGETS.width), "identity", {})

    def climatology(self) -> "Transform":
        """The same inputs, and targets without departures: 0 in every scaled column is the mean of the training rows."""
        std = np.sqrt(self.statistics.variance)
        targets = _scaling(self.statistics.mean, std, std == 0)
        return Transform(self.inputs, targets, self.scaling, self.fitted_on, self.feature_names, self.options, statistics=self.statistics)

    def digest(self) -> str:
        """Short hash of everything the transform does; shards and models carry it."""
        return _digest(self.to_dict())


def _unmasked(targets: ColumnScaling) -> ColumnScaling:
    """The same scaling, but constant columns in units of the competition's standard deviation, or 1 where that is 0."""
    known = torch.from_numpy(competition_columns(TARGETS).std)
    unit = torch.where(known > 0, known, 1.0)
    return ColumnScaling(targets.mean, torch.where(targets.constant, unit, targets.scale), torch.zeros_like(targets.constant), targets.clip)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scaling:
    """How inputs are scaled: variables that go through the logarithm, and the fit on the moments of what comes out of it."""

    log_variables: tuple[str, ...]
    fit_inputs: Callable[[Moments], ColumnScaling]
    departures: bool = False
    """Whether water columns may be learned as departures."""


class StandardOptions(Options):
    clip: PositiveFloat | None = 30.0
    """Soft-clip bound of inputs, in standard deviations; none keeps them as they are."""
    departures: bool = True
    """Learn a water column as its departure from ``-state / 1200`` where that varies much less."""


class ReferenceOptions(Options):
    floor: PositiveFloat = 1e-6
    """Smallest standard deviation: the original's floor, which hides 235 inputs (FACTS section 4a)."""


class LogPerVariableOptions(Options):
    clip: PositiveFloat | None = 100.0
    """Soft-clip bound of inputs, in standard deviations. No recorded extreme reaches it (the farthest, the surface stress of high-res
    in low-res scaling, is at 86), so that real columns get the original's numbers and what is not real stays bounded."""
    departures: bool = True
    """Learn a water column as its departure from ``-state / 1200`` where that varies much less."""
    added: PositiveFloat = 1e-10
    """Added to every standard deviation of the 556 inputs, as the original does (FACTS section 4d)."""


def _standard(options: StandardOptions) -> Scaling:
    return Scaling(
        (), lambda moments: _by_std(moments, _constant(moments) | _beyond_float32(moments), options.clip or 0.0), options.departures
    )


def _reference(options: ReferenceOptions) -> Scaling:
    def fit(moments: Moments) -> ColumnScaling:
        std = np.maximum(moments.std, options.floor)
        return _scaling(moments.mean, std, np.zeros(len(std), bool))

    return Scaling((), fit)


def _log_per_variable(options: LogPerVariableOptions) -> Scaling:
    """One mean and standard deviation for all 60 levels of a profile variable, after the logarithm where it has one.

    A level that is constant is kept where its variable is not: it lies within the variable's spread, and its place in the profile
    means something.
    """

    def fit(moments: Moments) -> ColumnScaling:
        mean, std, constant = moments.mean.copy(), moments.std, _constant(moments)
        for variable in INPUTS.profiles:
            columns = INPUTS[variable.name]
            pooled = moments[columns].pooled()
            mean[columns], std[columns], constant[columns] = pooled.mean, pooled.std, _constant(pooled)
        std[: INPUTS.width] += options.added
        log = INPUTS.mask(LOG_VARIABLES)
        return _scaling(mean, std, constant, options.clip or 0.0, np.pad(log, (0, len(mean) - len(log))))

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

    def __init__(self, scaling: Choice, features: Sequence[str]) -> None:
        self.name = scaling.name
        self.options = SCALINGS.options(scaling).model_dump()
        self.features = check_features(features)
        scaler = SCALINGS.build(scaling)
        self.log_variables, self._fit_inputs = scaler.log_variables, scaler.fit_inputs
        self.inputs_width = INPUTS.width + LEVELS * len(self.features)
        self._stop = self.inputs_width + TARGETS.width
        self.width = self._stop + (len(CANDIDATES) if scaler.departures else 0)
        """Columns that are fitted: raw inputs, features, targets, departures."""
        self.raw = not (self.features or self.log_variables)
        """Whether these are the raw columns and what :meth:`raw_columns` adds to them."""
        self._engineered = EngineeredFeatures(self.features)

    def columns(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Float64 ``(n, width)``, column by column (F order), after features and logarithm; moments of it are what :meth:`fit` takes.

        ``inputs`` is float64 ``(n, 556)`` and ``targets`` ``(n, 368)``, of any memory layout.
        """
        columns = np.empty((len(inputs), self.width), order="F")
        columns[:, : INPUTS.width] = inputs
        columns[:, self.inputs_width : self._stop] = targets
        if self.width > self._stop:
            np.add(inputs[:, _SOURCES] / STEP_SECONDS, targets[:, _CANDIDATE_MASK], out=columns[:, self._stop :])
        raw = torch.from_numpy(columns)[:, : INPUTS.width]
        for index, feature in enumerate(self._engineered(raw)):
            start = INPUTS.width + LEVELS * index
            columns[:, start : start + LEVELS] = feature.numpy()
        for name in self.log_variables:
            raw[:, INPUTS[name]] = log_columns(raw[:, INPUTS[name]])
        return columns

    def raw_columns(self, columns: Sequence[np.ndarray] | np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """The same as :meth:`columns`, of raw columns ``(n,)`` in the order of the flat layout, where ``raw`` says that they are enough."""
        if self.width == self._stop:
            return columns
        targets = np.flatnonzero(_CANDIDATE_MASK) + INPUTS.width
        return [
            *columns,
            *(columns[source] / STEP_SECONDS + columns[target] for source, target in zip(_SOURCES.tolist(), targets.tolist(), strict=True)),
        ]

    def fit(self, moments: Moments, fitted_on: Mapping[str, Any]) -> Transform:
        """The transform from the moments of all :meth:`columns` of the training rows; ``fitted_on`` says which rows they were.

        Without moments of the departures, which a csv of statistics does not have, every target is learned as it is.
        """
        inputs = self._fit_inputs(moments[: self.inputs_width])
        targets = moments[self.inputs_width : self._stop]
        statistics = TargetStatistics(targets.mean, np.square(targets.std), origin_of(fitted_on))
        learned, departed = (
            _with_departures(targets, moments[self._stop :]) if len(moments.mean) > self._stop else (targets, np.zeros(TARGETS.width, bool))
        )
        # a departure that is 0 in netCDF may be rounding in files that were written as text
        rounding = departed & (learned.maximum - learned.minimum <= _NO_SPREAD * (targets.maximum - targets.minimum))
        return Transform(
            inputs,
            _by_std(learned, _constant(learned) | rounding),
            self.name,
            fitted_on,
            self.features,
            self.options,
            statistics=statistics,
            departures=[column for column, departs in zip(TARGETS.columns, departed, strict=True) if departs],
        )


def _with_departures(targets: Moments, departures: Moments) -> tuple[Moments, np.ndarray]:
    """Moments of what is learned of each target, the departure where it varies much less, and a mask ``(368,)`` of those columns."""
    departed = np.zeros(TARGETS.width, bool)
    known = np.square(competition_columns(TARGETS).std)
    telling = _LIQUID | (targets.m2 >= VARYING * known * targets.count)
    departed[_CANDIDATE_MASK] = departures.m2 < _MUCH_LESS * targets.m2[_CANDIDATE_MASK]
    departed &= telling
    chosen = departed[_CANDIDATE_MASK]

    def mixed(name: str) -> np.ndarray:
        values = getattr(targets, name).copy()
        values[departed] = getattr(departures, name)[chosen]
        return values

    return Moments(targets.count, *(mixed(name) for name in ("mean", "m2", "minimum", "maximum"))), departed


def _statistics_of(targets: ColumnScaling, fitted_on: Mapping[str, Any]) -> TargetStatistics:
    std = targets.scale.masked_fill(targets.constant, 0.0)
    return TargetStatistics(targets.mean.numpy().copy(), std.square().numpy(), origin_of(fitted_on))


def origin_of(fitted_on: Mapping[str, Any]) -> str:
    """The training rows that a transform was fitted on, in words."""
    if "statistics" in fitted_on:
        return f"the training rows of {fitted_on['statistics']}"
    if "rows" in fitted_on:
        return f"{fitted_on['rows']:,} training rows of {fitted_on.get('source')}, months {fitted_on.get('months')}"
    return "the training rows"
