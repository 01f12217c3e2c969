"""From raw columns to a network's numbers and back: fitted once, saved as ``transform.json``, the one implementation everywhere.

The data plane, the emulator and the export all run this float64 torch module; only its result is float32.
Shapes: b rows; i = 556 raw inputs, s = 556 + 60 F scaled ones with F engineered features, t = 368 targets.
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

from leapray.climsim.schema import GASES, INPUTS, LEVELS, TARGETS, schema_hash
from leapray.data.features import EngineeredFeatures, check_features
from leapray.data.moments import Moments
from leapray.data.scaling import ColumnScaling, log_columns
from leapray.errors import UserError
from leapray.faults import told
from leapray.recipe import Choice
from leapray.registry import Options, Registry

LOG_VARIABLES = ("state_q0001", "state_q0002", "state_q0003", *(gas.name for gas in GASES))
"""Variables of many magnitudes, whose logarithm ``log-per-variable`` takes (FACTS section 4d)."""
_BLOCK_ROWS = 256
"""Rows that are scaled at a time on a CPU, so that what lies between raw and scaled stays in a core's cache."""


class Transform(nn.Module):
    """Scaling of raw inputs, with the engineered features that follow them, and of targets, with what it was fitted on."""

    def __init__(
        self,
        inputs: ColumnScaling,
        targets: ColumnScaling,
        scaling: str,
        fitted_on: Mapping[str, Any],
        features: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.targets = targets
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
    def scale_targets(self, y_bt: Tensor) -> Tensor:
        """Physical tendencies and fluxes ``(b, 368)`` to C-contiguous float32 ``(b, 368)``."""
        if self._whole(y_bt):
            return self.targets(y_bt).to(torch.float32).contiguous()
        z_bt = torch.empty([y_bt.shape[0], self.targets.mean.numel()], dtype=torch.float32, device=y_bt.device)
        for start in range(0, y_bt.shape[0], self.block_rows):
            z_bt[start : start + self.block_rows] = self.targets(y_bt[start : start + self.block_rows]).to(torch.float32)
        return z_bt

    @torch.jit.export
    def unscale_targets(self, z_bt: Tensor) -> Tensor:
        """The network's output ``(b, 368)`` to physical float64 ``(b, 368)``."""
        return self.targets.inverse(z_bt)

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
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "transform") -> "Transform":
        """Rebuild from :meth:`to_dict`. Raises UserError for another schema, an unknown feature or wrong shapes."""
        if not isinstance(values, Mapping) or values.get("schema") != schema_hash():
            found = told(values.get("schema")) if isinstance(values, Mapping) else None
            raise UserError(f"{name}: made for schema {found}, but this leapray has schema {schema_hash()}")
        try:
            features = values["features"]
            inputs = ColumnScaling.from_dict(values["inputs"], INPUTS.width + LEVELS * len(features), f"{name}: inputs")
            targets = ColumnScaling.from_dict(values["targets"], TARGETS.width, f"{name}: targets")
            if not (math.isfinite(inputs.clip + targets.clip) and min(inputs.clip, targets.clip) >= 0):
                raise ValueError(f"clip {inputs.clip}, {targets.clip}")
            if not isinstance(values["scaling"], str):
                raise TypeError(f"scaling {values['scaling']}")
            return cls(inputs, targets, values["scaling"], values["fitted_on"], features, values["options"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{name}: not a transform, {type(error).__name__} at {told(error, 200)}") from error

    def digest(self) -> str:
        """Short hash of everything the transform does; shards and models carry it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scaling:
    """How inputs are scaled: variables that go through the logarithm, and the fit on the moments of what comes out of it."""

    log_variables: tuple[str, ...]
    fit_inputs: Callable[[Moments], ColumnScaling]


class StandardOptions(Options):
    clip: PositiveFloat | None = 30.0
    """Soft-clip bound of inputs, in standard deviations; none keeps them as they are."""


class ReferenceOptions(Options):
    floor: PositiveFloat = 1e-6
    """Smallest standard deviation: the original's floor, which hides 235 inputs (FACTS section 4a)."""


class LogPerVariableOptions(Options):
    clip: PositiveFloat | None = 100.0
    """Soft-clip bound of inputs, in standard deviations. No recorded extreme reaches it (the farthest, the surface stress of high-res
    in low-res scaling, is at 86), so that real columns get the original's numbers and what is not real stays bounded."""
    added: PositiveFloat = 1e-10
    """Added to every standard deviation of the 556 inputs, as the original does (FACTS section 4d)."""


def _standard(options: StandardOptions) -> Scaling:
    return Scaling((), lambda moments: _by_std(moments, options.clip or 0.0))


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

    return Scaling(LOG_VARIABLES, fit)


def _by_std(moments: Moments, clip: float = 0.0) -> ColumnScaling:
    return _scaling(moments.mean, moments.std, _constant(moments), clip)


def _constant(moments: Moments) -> np.ndarray:
    # below 1e-154 a variance underflows: nothing is left to scale by
    return moments.constant | (moments.std == 0)


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
        self.width = self.inputs_width + TARGETS.width
        """Columns that are fitted: raw inputs, features, targets."""
        self.raw = not (self.features or self.log_variables)
        """Whether these are the raw columns and nothing else."""
        self._engineered = EngineeredFeatures(self.features)

    def columns(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Float64 ``(n, width)``, column by column (F order), after features and logarithm; moments of it are what :meth:`fit` takes.

        ``inputs`` is float64 ``(n, 556)`` and ``targets`` ``(n, 368)``, of any memory layout.
        """
        columns = np.empty((len(inputs), self.width), order="F")
        columns[:, : INPUTS.width] = inputs
        columns[:, self.inputs_width :] = targets
        raw = torch.from_numpy(columns)[:, : INPUTS.width]
        for index, feature in enumerate(self._engineered(raw)):
            start = INPUTS.width + LEVELS * index
            columns[:, start : start + LEVELS] = feature.numpy()
        for name in self.log_variables:
            raw[:, INPUTS[name]] = log_columns(raw[:, INPUTS[name]])
        return columns

    def fit(self, moments: Moments, fitted_on: Mapping[str, Any]) -> Transform:
        """The transform from the moments of all :meth:`columns` of the training rows; ``fitted_on`` says which rows they were."""
        inputs = self._fit_inputs(moments[: self.inputs_width])
        targets = _by_std(moments[self.inputs_width :])
        return Transform(inputs, targets, self.name, fitted_on, self.features, self.options)
