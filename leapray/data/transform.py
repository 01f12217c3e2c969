"""The scaling of raw columns for a network and back: fitted once, saved as ``transform.json``, the one implementation everywhere.

The data plane, the emulator and the export all run this float64 torch module; only its result is float32, since raw columns
reach 1e-51 and would vanish in single precision (FACTS section 2).
Shapes: b rows; i = 556 raw inputs, t = 368 targets.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from leapray.climsim.schema import INPUTS, LEVELS, TARGETS, Layout, schema_hash
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.recipe import Choice
from leapray.registry import Options, Registry

_PLAIN = "z = (x - mean) / scale; 0 where constant"
_CLIPPED = f"{_PLAIN}; sign(z) * (clip + log(1 + |z| - clip)) where |z| > clip"


class ColumnScaling(nn.Module):
    """Per-column ``(x - mean) / scale`` in float64, constants to 0, and a soft clip of extreme values.

    The clip keeps ``|z| <= clip`` as it is and continues as ``clip + log(1 + |z| - clip)``: smooth, monotone and invertible,
    so that the 8 500 standard deviations of real cloud columns become 39. ``clip`` 0 means none.
    """

    mean: Tensor
    scale: Tensor
    constant: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, constant: Tensor, clip: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float64))
        self.register_buffer("scale", scale.to(torch.float64))
        self.register_buffer("constant", constant.to(torch.bool))
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``(b, width)`` of any float type to float64 ``(b, width)``."""
        z = ((x.to(torch.float64) - self.mean) / self.scale).masked_fill_(self.constant, 0.0)
        if self.clip > 0.0:
            size = z.abs()
            beyond = (size - self.clip).clamp_min_(0.0)
            # within the bound this adds exactly 0, so nothing is rounded there
            z = z + torch.sign(z) * (torch.log1p(beyond) - beyond)
        return z

    def inverse(self, z: Tensor) -> Tensor:
        """Undo :meth:`forward` in float64; a constant column gives its mean."""
        z = z.to(torch.float64).masked_fill(self.constant, 0.0)
        if self.clip > 0.0:
            beyond = (z.abs() - self.clip).clamp_min(0.0)
            z = z + torch.sign(z) * (torch.expm1(beyond) - beyond)
        return z * self.scale + self.mean

    def to_dict(self) -> dict[str, Any]:
        columns = {"mean": self.mean.tolist(), "scale": self.scale.tolist(), "constant": self.constant.tolist()}
        return columns | {"clip": self.clip, "formula": _CLIPPED if self.clip else _PLAIN}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], layout: Layout, name: str) -> "ColumnScaling":
        columns = {key: torch.tensor(values[key], dtype=torch.float64) for key in ("mean", "scale", "constant")}
        for key, column in columns.items():
            if column.shape != (layout.width,):
                raise UserError(f"{name}: {key} has shape {tuple(column.shape)}, expected ({layout.width},)")
        return cls(columns["mean"], columns["scale"], columns["constant"], float(values["clip"]))


class Transform(nn.Module):
    """Scaling of raw inputs and targets, with what it was fitted on."""

    def __init__(self, inputs: ColumnScaling, targets: ColumnScaling, scaling: str, fitted_on: Mapping[str, Any]) -> None:
        super().__init__()
        self.inputs = inputs
        self.targets = targets
        self.features = (inputs.mean.numel() - INPUTS.width) // LEVELS
        """Engineered profiles that follow the 556 inputs."""
        self.scaling = scaling
        self.fitted_on = dict(fitted_on)

    @torch.jit.export
    def scale_inputs(self, x_bi: Tensor) -> Tensor:
        """Raw columns ``(b, 556)``, best float64, to the network's float32 ``(b, 556)``."""
        return self.inputs(x_bi).to(torch.float32)

    @torch.jit.export
    def scale_targets(self, y_bt: Tensor) -> Tensor:
        """Physical tendencies and fluxes ``(b, 368)`` to float32 ``(b, 368)``."""
        return self.targets(y_bt).to(torch.float32)

    @torch.jit.export
    def unscale_targets(self, z_bt: Tensor) -> Tensor:
        """The network's output ``(b, 368)`` to physical float64 ``(b, 368)``."""
        return self.targets.inverse(z_bt)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that keep every bit; the content of ``transform.json``."""
        return {
            "schema": schema_hash(),
            "scaling": self.scaling,
            "fitted_on": self.fitted_on,
            "inputs": self.inputs.to_dict(),
            "targets": self.targets.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "transform") -> "Transform":
        """Rebuild from :meth:`to_dict`. Raises UserError for another schema or wrong shapes."""
        if values.get("schema") != schema_hash():
            raise UserError(f"{name}: made for schema {values.get('schema')}, but this leapray has schema {schema_hash()}")
        try:
            inputs = ColumnScaling.from_dict(values["inputs"], INPUTS, f"{name}: inputs")
            targets = ColumnScaling.from_dict(values["targets"], TARGETS, f"{name}: targets")
            return cls(inputs, targets, values["scaling"], values["fitted_on"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name}: not a transform, {type(error).__name__} at {error}") from error

    def digest(self) -> str:
        """Short hash of everything the transform does; shards and models carry it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


class StandardOptions(Options):
    clip: PositiveFloat | None = 30.0
    """Soft-clip bound of inputs, in standard deviations; none keeps them as they are."""


class ReferenceOptions(Options):
    floor: PositiveFloat = 1e-6
    """Smallest standard deviation: the original's floor, which hides 235 inputs (FACTS section 4a)."""


Scalings = tuple[ColumnScaling, ColumnScaling]


def _standard(options: StandardOptions, inputs: Moments, targets: Moments) -> Scalings:
    return _by_std(inputs, options.clip or 0.0), _by_std(targets, 0.0)


def _reference(options: ReferenceOptions, inputs: Moments, targets: Moments) -> Scalings:
    mean, std = torch.from_numpy(inputs.mean), torch.from_numpy(inputs.std)
    return ColumnScaling(mean, std.clamp_min(options.floor), torch.zeros_like(mean)), _by_std(targets, 0.0)


def _by_std(moments: Moments, clip: float) -> "ColumnScaling":
    # below 1e-154 a variance underflows: nothing is left to scale by
    constant = torch.from_numpy(moments.constant | (moments.std == 0))
    scale = torch.from_numpy(moments.std).masked_fill(constant, 1.0)
    return ColumnScaling(torch.from_numpy(moments.mean), scale, constant, clip)


SCALINGS: Registry[Scalings] = Registry(
    "data.scaling", {"standard": (StandardOptions, _standard), "reference": (ReferenceOptions, _reference)}
)


def fit_transform(scaling: Choice, inputs: Moments, targets: Moments, fitted_on: Mapping[str, Any]) -> Transform:
    """Make the transform that a recipe's ``data.scaling`` names from the moments of its training rows.

    Raises UserError for an unknown scaling or option.
    """
    return Transform(*SCALINGS.build(scaling, inputs, targets), scaling.name, fitted_on)
