"""The scaling of columns: an optional logarithm, mean and scale, and a soft clip, each way, in scriptable float64 torch.

Raw columns reach 1e-51 and would vanish in single precision. Shapes: b rows of any width.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leapray.errors import UserError

LOG_OFFSET = 1e-7
LARGEST = torch.finfo(torch.float32).max

_LOG = f"x = sign(x) * log(1 + |x| / {LOG_OFFSET}) + log({LOG_OFFSET}) where pre is log, which is log(x + {LOG_OFFSET}) for x >= 0"
_SCALE = "z = (x - mean) / scale, within float32's range; 0 where constant"
_CLIP = "sign(z) * (clip + log(1 + |z| - clip)) where |z| > clip"


def log_columns(x: Tensor, offset: float = LOG_OFFSET, largest: float = sys.float_info.max) -> Tensor:
    """``log(x + 1e-7)``, continued below 0 as its point reflection: finite, monotone and invertible everywhere."""
    size = (x.abs() / offset).clamp(max=largest).log1p()
    return size.copysign(x) + math.log(offset)


def exp_columns(y: Tensor, offset: float = LOG_OFFSET) -> Tensor:
    """Undo :func:`log_columns`."""
    y = y - math.log(offset)
    return (y.abs().expm1() * offset).copysign(y)


class ColumnScaling(nn.Module):
    """Per column an optional logarithm, ``(x - mean) / scale`` in float64 with constants to 0, and a soft clip of extreme values.

    Every finite value gives one within float32's range. The clip keeps ``|z| <= clip`` as it is and continues as
    ``clip + log(1 + |z| - clip)``: smooth, monotone and invertible, so that the 8 500 standard deviations of real cloud columns
    become 39, and no value exceeds ``clip + 89``. ``clip`` 0 means none. ``log`` marks the columns of the logarithm.
    """

    mean: Tensor
    scale: Tensor
    constant: Tensor
    shift: Tensor
    divisor: Tensor
    log_ranges: list[tuple[int, int]]

    def __init__(self, mean: Tensor, scale: Tensor, constant: Tensor, clip: float = 0.0, log: Tensor | None = None) -> None:
        super().__init__()
        constant = constant.to(torch.bool)
        self.register_buffer("mean", mean.to(torch.float64))
        self.register_buffer("scale", scale.to(torch.float64))
        self.register_buffer("constant", constant)
        # a constant column is (x - 0) / inf, which takes no pass of its own
        self.register_buffer("shift", self.mean.masked_fill(constant, 0.0), persistent=False)
        self.register_buffer("divisor", self.scale.masked_fill(constant, math.inf), persistent=False)
        self.clip = clip
        self.largest = LARGEST
        edges = torch.zeros(mean.numel() + 2)
        edges[1:-1] = 0.0 if log is None else log.to(edges.dtype)
        bounds = edges.diff().nonzero().flatten().tolist()
        self.log_ranges = list(zip(bounds[::2], bounds[1::2], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``(b, width)`` of any float type to float64 ``(b, width)``."""
        x = x.to(torch.float64)
        z = x - self.shift
        for start, stop in self.log_ranges:
            z[:, start:stop] = log_columns(x[:, start:stop]) - self.shift[start:stop]
        z = (z / self.divisor).clamp(-self.largest, self.largest)
        if self.clip > 0.0:
            # few columns hold extremes, and a logarithm costs more than all the rest
            extreme = (z.abs() > self.clip).any(0).nonzero().flatten()
            wide = z[:, extreme]
            # within the bound this adds exactly 0, so nothing is rounded there
            beyond = (wide.abs() - self.clip).clamp(min=0.0).log1p()
            z[:, extreme] = wide.clamp(-self.clip, self.clip) + beyond.copysign(wide)
        return z

    def inverse(self, z: Tensor) -> Tensor:
        """Undo :meth:`forward` in float64; a constant column gives its mean."""
        z = z.to(torch.float64).masked_fill(self.constant, 0.0)
        if self.clip > 0.0:
            beyond = (z.abs() - self.clip).clamp_min(0.0)
            z = z + torch.sign(z) * (torch.expm1(beyond) - beyond)
        x = z * self.scale + self.mean
        for start, stop in self.log_ranges:
            x[:, start:stop] = exp_columns(x[:, start:stop])
        return x

    def of(self, places: Tensor) -> "ColumnScaling":
        """The scaling of some columns, in the order of their places ``(c,)``."""
        log = torch.zeros_like(self.constant)
        for first, last in self.log_ranges:
            log[first:last] = True
        return ColumnScaling(self.mean[places], self.scale[places], self.constant[places], self.clip, log[places])

    def to_dict(self) -> dict[str, Any]:
        pre = ["none"] * self.mean.numel()
        for start, stop in self.log_ranges:
            pre[start:stop] = ["log"] * (stop - start)
        columns = {"pre": pre, "mean": self.mean.tolist(), "scale": self.scale.tolist(), "constant": self.constant.tolist()}
        steps = [_LOG] * bool(self.log_ranges) + [_SCALE] + [_CLIP] * bool(self.clip)
        return columns | {"clip": self.clip, "formula": "; ".join(steps)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], width: int, name: str) -> "ColumnScaling":
        """Rebuild from :meth:`to_dict`. Raises UserError for another width, and for numbers that nothing can be scaled by."""
        mean, scale = (torch.tensor(values[key], dtype=torch.float64) for key in ("mean", "scale"))
        constant = torch.tensor(values["constant"], dtype=torch.bool)
        log = torch.tensor([{"none": False, "log": True}[pre] for pre in values["pre"]])
        for key, column in {"mean": mean, "scale": scale, "constant": constant, "pre": log}.items():
            if column.shape != (width,):
                raise UserError(f"{name}: {key} has shape {tuple(column.shape)}, expected ({width},)")
        if not (mean.isfinite() & scale.isfinite() & (scale > 0)).all():
            raise UserError(f"{name}: holds a mean or scale that is not a finite number, or a scale that is not above 0")
        return cls(mean, scale, constant, float(values["clip"]), log)
