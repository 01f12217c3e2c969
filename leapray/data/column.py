"""One column's raw variables by short names, as engineered features and derived variables take them: scriptable float64 torch.

Shapes: b rows, i raw inputs of a variable set, profiles ``(b, levels)`` with the model top first, scalars ``(b, 1)``.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leapray.climsim import grid
from leapray.climsim.schema import GASES, LEVELS, SNOWHICE, SNOWHLAND, STATE, SURFACE, UNREAL, Layout
from leapray.data.humidity import SaturationHumidity


class Column(NamedTuple):
    """Raw variables of a batch, float64; of no width where a row has none. Units are those of the raw variables.

    ``snowhice``, snow depth over sea ice, is 0 where the file has the fill value because there is no sea ice.
    ``pressure`` is the mid-layer pressure in Pa, ``rh`` the relative humidity from 0 to about 1; both are there for what asks for them.
    """

    t: Tensor
    q1: Tensor
    q2: Tensor
    q3: Tensor
    u: Tensor
    v: Tensor
    ozone: Tensor
    ch4: Tensor
    n2o: Tensor
    ps: Tensor
    solin: Tensor
    lhflx: Tensor
    shflx: Tensor
    taux: Tensor
    tauy: Tensor
    coszrs: Tensor
    aldif: Tensor
    aldir: Tensor
    asdif: Tensor
    asdir: Tensor
    lwup: Tensor
    icefrac: Tensor
    landfrac: Tensor
    ocnfrac: Tensor
    snowhice: Tensor
    snowhland: Tensor
    pressure: Tensor
    rh: Tensor


RAW = dict(zip(Column._fields, (variable.name for variable in (*STATE, *GASES, *SURFACE, SNOWHICE, SNOWHLAND)), strict=False))
"""The raw variable that a field holds."""
_T, _Q1, _PS, _SNOWHICE = (list(RAW).index(field) for field in ("t", "q1", "ps", "snowhice"))
_MADE_OF = {"pressure": ("ps",), "rh": ("t", "q1", "ps")}


def sources(fields: Iterable[str]) -> set[str]:
    """Names of the raw variables that fields of a column are made of."""
    return {RAW[field] for name in fields for field in _MADE_OF.get(name, (name,))}


class ColumnOf(nn.Module):
    """Raw columns as a :class:`Column` in which ``fields`` are there."""

    a_mid: Tensor
    b_mid: Tensor

    def __init__(self, raw: Layout, fields: Iterable[str]) -> None:
        super().__init__()
        fields = set(fields)
        self.spans = [(raw[name].start, raw[name].stop) if name in raw else (0, 0) for name in RAW.values()]
        self.with_rh = "rh" in fields
        self.with_pressure = self.with_rh or "pressure" in fields
        self.saturation = SaturationHumidity()
        levels = grid.hybrid_levels()
        self.register_buffer("a_mid", torch.from_numpy(levels.a_mid * grid.REFERENCE_PRESSURE), persistent=False)
        self.register_buffer("b_mid", torch.from_numpy(levels.b_mid.copy()), persistent=False)
        assert len(self.a_mid) == LEVELS
        self.unreal = UNREAL
        self.t, self.q1, self.ps, self.snowhice = _T, _Q1, _PS, _SNOWHICE

    def forward(self, x_bi: Tensor) -> Column:
        """Raw columns ``(b, i)`` of any float type."""
        x = x_bi.to(torch.float64)
        p = [x[:, start:stop] for start, stop in self.spans]
        pressure, rh = x[:, :0], x[:, :0]
        if self.with_pressure:
            pressure = self.a_mid + self.b_mid * p[self.ps]
        if self.with_rh:
            rh = p[self.q1] / self.saturation(p[self.t], pressure)
        snow = p[self.snowhice]
        p[self.snowhice] = torch.where(snow.abs() < self.unreal, snow, 0.0)
        # fmt: off
        return Column(
            p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15], p[16], p[17], p[18],
            p[19], p[20], p[21], p[22], p[23], p[24], p[25], pressure, rh,
        )
        # fmt: on
