"""From raw columns to a network's numbers and back: fitted once, saved as ``transform.json``, the one implementation everywhere.

The data plane, the emulator and the export all run this float64 torch module; only its result is float32.
Shapes: b rows; i raw inputs of a row, s scaled inputs of a network, which end with the engineered features, t targets.

A *departure* is what a water tendency differs by from losing all of the water in one step, ``ptend_q + state_q / 1200``. Cloud liquid of
cold levels is lost so in nearly every row, and there the departure is what is left to learn: a column is learned as its departure
where that has less than half of the column's variance over the training rows. A column of vapour or ice must also vary in these rows: what
is silent there says nothing of months in which it is not, while cold air holds no liquid in any month.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import STEP_SECONDS, Channels, Layout, Targets, VariableSet
from leapray.data.features import EngineeredFeatures, InputVariables, channels, check_features
from leapray.data.scaling import ColumnScaling
from leapray.errors import UserError
from leapray.evaluation.metrics import TargetStatistics
from leapray.faults import told

_BLOCK_ROWS = 256
"""Rows that are scaled at a time on a CPU, so that what lies between raw and scaled stays in a core's cache."""


class Transform(nn.Module):
    """From the raw rows of a variable set to a network's scaled inputs, with engineered features, and targets; and back to targets."""

    __jit_unused_properties__ = ("channels",)
    departed: Tensor
    departed_state: Tensor
    departed_input: Tensor

    def __init__(
        self,
        variables: VariableSet,
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
        self.variables = variables
        self.inputs = inputs
        self.targets = targets
        """Of what is learned: departures where ``departures`` names the column."""
        self.statistics = statistics or _statistics_of(variables.targets, targets, fitted_on)
        """Mean and variance of the physical targets over the training rows; by default what targets are scaled by."""
        self.departures = list(departures)
        self.departs = len(self.departures) > 0
        self.step_seconds = float(STEP_SECONDS)
        self.truths = _unmasked(variables.targets, targets)
        """The targets' scaling with a unit for constant columns too: what varies in other rows only is not lost in theirs."""
        states = [column.replace("ptend", "state") for column in self.departures]
        self.register_buffer("departed", _places(variables.targets, self.departures), persistent=False)
        self.register_buffer("departed_state", _places(variables.raw, states), persistent=False)
        self.register_buffer("departed_input", _places(variables.inputs, states), persistent=False)
        self.departed_inputs = inputs.of(self.departed_input)
        self.feature_names = list(check_features(features, variables))
        self.features = len(features)
        """Engineered profiles that follow the inputs of the variable set."""
        self.input_variables = InputVariables(variables)
        self.engineered = EngineeredFeatures(features, variables.raw)
        self.whole_row = self.features == 0 and self.input_variables.as_they_are
        self.scaling = scaling
        self.options = dict(options or {})
        self.fitted_on = dict(fitted_on)
        self.block_rows = _BLOCK_ROWS

    @property
    def channels(self) -> Channels:
        """What a network gets from this transform, and gives to it."""
        return channels(self.variables, self.feature_names)

    @torch.jit.export
    def scale_inputs(self, x_bi: Tensor) -> Tensor:
        """Raw columns ``(b, i)``, best float64, to the network's C-contiguous float32 ``(b, s)``; fastest column by column."""
        if self._whole(x_bi):
            return self._scale_inputs(x_bi).contiguous()
        z_bs = torch.empty([x_bi.shape[0], self.inputs.mean.numel()], dtype=torch.float32, device=x_bi.device)
        for start in range(0, x_bi.shape[0], self.block_rows):
            z_bs[start : start + self.block_rows] = self._scale_inputs(x_bi[start : start + self.block_rows])
        return z_bs

    @torch.jit.export
    def scale_targets(self, y_bt: Tensor, x_bi: Tensor) -> Tensor:
        """Physical tendencies and fluxes ``(b, t)`` of raw columns ``(b, i)`` to C-contiguous float32 ``(b, t)``."""
        if self._whole(y_bt):
            return self._scale_targets(y_bt, x_bi).contiguous()
        z_bt = torch.empty([y_bt.shape[0], self.targets.mean.numel()], dtype=torch.float32, device=y_bt.device)
        for start in range(0, y_bt.shape[0], self.block_rows):
            rows = slice(start, start + self.block_rows)
            z_bt[rows] = self._scale_targets(y_bt[rows], x_bi[rows])
        return z_bt

    def _scale_targets(self, y_bt: Tensor, x_bi: Tensor) -> Tensor:
        if self.departs:
            y_bt = self._shifted(y_bt.to(torch.float64), x_bi.index_select(1, self.departed_state).to(torch.float64))
        return self.truths(y_bt).to(torch.float32)

    @torch.jit.export
    def unscale_targets(self, z_bt: Tensor, x_bi: Tensor) -> Tensor:
        """The network's output ``(b, t)`` for raw columns ``(b, i)`` to physical float64 ``(b, t)``."""
        y_bt = self.targets.inverse(z_bt)
        if self.departs:
            y_bt = self._shifted(y_bt, 0.0 - x_bi.index_select(1, self.departed_state).to(torch.float64))
        return y_bt

    def _shifted(self, y_bt: Tensor, water: Tensor) -> Tensor:
        """Targets with ``water / 1200`` added to the departed columns, for their states ``(b, departed)``."""
        return y_bt.index_add(1, self.departed, water / self.step_seconds)

    def physical_truth(self, z_bt: Tensor, z_bs: Tensor) -> Tensor:
        """Scaled targets ``(b, t)`` beside scaled inputs ``(b, s)``, as shards hold them, to physical float64 ``(b, t)``."""
        return self._physical(self.truths, z_bt, z_bs)

    def physical_prediction(self, z_bt: Tensor, z_bs: Tensor) -> Tensor:
        """A network's output ``(b, t)`` for scaled inputs ``(b, s)`` to physical float64 ``(b, t)``."""
        return self._physical(self.targets, z_bt, z_bs)

    def _physical(self, scaling: ColumnScaling, z_bt: Tensor, z_bs: Tensor) -> Tensor:
        y_bt = scaling.inverse(z_bt)
        if self.departs:
            y_bt = self._shifted(y_bt, 0.0 - self.departed_inputs.inverse(z_bs.index_select(1, self.departed_input)))
        return y_bt

    def _scale_inputs(self, x_bi: Tensor) -> Tensor:
        if self.whole_row:
            return self.inputs(x_bi).to(torch.float32)
        parts = self.input_variables(x_bi)
        if self.features > 0:
            parts = parts + self.engineered(x_bi)
        # transposed, since columns are what is contiguous in between
        return self.inputs(torch.cat([part.t() for part in parts]).t()).to(torch.float32)

    def _whole(self, x: Tensor) -> bool:
        """Whether rows are best scaled all at once: on an accelerator, and in an exported graph, which cannot hold the loop."""
        return torch.compiler.is_compiling() or x.device.type != "cpu"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that keep every bit; the content of ``transform.json``."""
        return {
            "variables": self.variables.to_dict(),
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
        """Rebuild from :meth:`to_dict`. Raises UserError for variables of another leapray, an unknown feature or wrong shapes."""
        if not isinstance(values, Mapping):
            raise UserError(f"{name}: not a transform, expected an object")
        variables = VariableSet.from_dict(values.get("variables"), name)
        if "statistics" not in values:
            raise UserError(
                f"{name}: made by an earlier leapray, without the statistics that skill needs; prepare the data and train again"
            )
        statistics = TargetStatistics.from_dict(values["statistics"], variables.targets, name)
        try:
            features = values["features"]
            inputs = ColumnScaling.from_dict(
                values["inputs"], channels(variables, check_features(features)).inputs.width, f"{name}: inputs"
            )
            targets = ColumnScaling.from_dict(values["targets"], variables.targets.width, f"{name}: targets")
            if not (math.isfinite(inputs.clip + targets.clip) and min(inputs.clip, targets.clip) >= 0):
                raise ValueError(f"clip {inputs.clip}, {targets.clip}")
            if not isinstance(values["scaling"], str):
                raise TypeError(f"scaling {values['scaling']}")
            departures = values["departures"]
            if unknown := [column for column in departures if column not in departure_candidates(variables)]:
                raise ValueError(f"departure {told(unknown[0])}")
            return cls(
                variables,
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
        return _digest({"variables": self.variables.digest, "features": self.feature_names, "inputs": self.inputs.to_dict()})

    @classmethod
    def identity(cls, variables: VariableSet, features: Sequence[str] = ()) -> "Transform":
        """One that changes nothing, for rows that were never physical."""

        def scaling(width: int) -> ColumnScaling:
            return ColumnScaling(torch.zeros(width), torch.ones(width), torch.zeros(width))

        own = channels(variables, features)
        return cls(variables, scaling(own.inputs.width), scaling(own.targets.width), "identity", {}, features)

    def climatology(self) -> "Transform":
        """The same inputs, and targets without departures: 0 in every scaled column is the mean of the training rows."""
        std = np.sqrt(self.statistics.variance)
        constant = torch.from_numpy(std == 0)
        targets = ColumnScaling(torch.from_numpy(self.statistics.mean), torch.from_numpy(std).masked_fill(constant, 1.0), constant)
        return Transform(
            self.variables,
            self.inputs,
            targets,
            self.scaling,
            self.fitted_on,
            self.feature_names,
            self.options,
            statistics=self.statistics,
        )

    def digest(self) -> str:
        """Short hash of everything the transform does; shards and models carry it."""
        return _digest(self.to_dict())


def departure_candidates(variables: VariableSet) -> list[str]:
    """Targets that may be learned as departures: the learned ones of water species whose state the network is given as it is."""
    targets = variables.targets
    own = [name for name in targets.water if name.replace("ptend", "state") in variables.inputs]
    return [targets.columns[place] for place in np.flatnonzero(targets.learned & targets.mask(own))]


def _places(layout: Layout, columns: Sequence[str]) -> Tensor:
    return torch.from_numpy(layout.places(columns))


def _unmasked(layout: Targets, targets: ColumnScaling) -> ColumnScaling:
    """The same scaling, but constant columns in units of the competition's standard deviation, or 1 where that is 0."""
    known = torch.from_numpy(competition_columns(layout).std)
    unit = torch.where(known > 0, known, 1.0)
    return ColumnScaling(targets.mean, torch.where(targets.constant, unit, targets.scale), torch.zeros_like(targets.constant), targets.clip)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _statistics_of(layout: Targets, targets: ColumnScaling, fitted_on: Mapping[str, Any]) -> TargetStatistics:
    std = targets.scale.masked_fill(targets.constant, 0.0)
    return TargetStatistics(layout, targets.mean.numpy().copy(), std.square().numpy(), origin_of(fitted_on))


def origin_of(fitted_on: Mapping[str, Any]) -> str:
    """The training rows that a transform was fitted on, in words."""
    if "statistics" in fitted_on:
        return f"the training rows of {fitted_on['statistics']}"
    if "rows" in fitted_on:
        return f"{fitted_on['rows']:,} training rows of {fitted_on.get('source')}, months {fitted_on.get('months')}"
    return "the training rows"
