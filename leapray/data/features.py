"""Engineered features: further profiles that are computed from a column's raw ones (FACTS section 4c), as scriptable float64 torch.

Shapes: b rows, i = 556 raw inputs, every profile and feature ``(b, 60)`` with the model top first. All are finite for finite inputs.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leapray.climsim.schema import GASES, INPUTS, STATE
from leapray.errors import UserError

DRIEST = 1e-7
"""kg/kg: T/q1 takes no less for q1. A tenth of the stratosphere's, so that a few nearly dry layers (1e-12) do not set its spread."""

TRACE = 1e-35
"""kg/kg: a thousand times float32's smallest normal number, so that what is not less is there in float32 too."""


class Profiles(NamedTuple):
    """Raw profiles of a batch, each ``(b, 60)``, float64, in the order of the flat layout."""

    t: Tensor
    q1: Tensor
    q2: Tensor
    q3: Tensor
    u: Tensor
    v: Tensor
    ozone: Tensor
    ch4: Tensor
    n2o: Tensor


def temperature_difference(p: Profiles) -> Tensor:
    """T_k - T_{k+1} in K."""
    return _difference(p.t)


def humidity_difference(p: Profiles) -> Tensor:
    """q1_k - q1_{k+1} in kg/kg."""
    return _difference(p.q1)


def u_difference(p: Profiles) -> Tensor:
    """u_k - u_{k+1} in m/s."""
    return _difference(p.u)


def v_difference(p: Profiles) -> Tensor:
    """v_k - v_{k+1} in m/s."""
    return _difference(p.v)


def temperature_humidity_ratio(p: Profiles, driest: float = DRIEST) -> Tensor:
    """T / max(q1, 1e-7 kg/kg) in K."""
    return p.t / p.q1.clamp_min(driest)


def air_total(p: Profiles) -> Tensor:
    """O3 + CH4 + N2O in mol/mol."""
    return p.ozone + p.ch4 + p.n2o


def moisture_transport(p: Profiles) -> Tensor:
    """q1 (u^2 + v^2) in m2/s2."""
    return p.q1 * (p.u * p.u + p.v * p.v)


def moisture_transport_reference(p: Profiles) -> Tensor:
    """q1^2 (u^2 + v^2), as the original's code has it against its own description; for comparison only."""
    return p.q1 * moisture_transport(p)


def liquid_partition(p: Profiles) -> Tensor:
    """q2 / (q2 + q3), from 0 to 1; 0 without condensate. Liquid or ice of less than ``TRACE`` counts as none.

    ClimSim's files hold traces down to 1e-57 kg/kg above level 30. Float32, which a climate model passes, has no such numbers.
    """
    liquid, ice = _present(p.q2), _present(p.q3)
    return _share(liquid, liquid + ice)


def condensate_imbalance(p: Profiles) -> Tensor:
    """(q2 - q3) / (q2 + q3), from -1 (ice) to 1 (liquid); 0 without condensate. Liquid or ice of less than ``TRACE`` counts as none."""
    liquid, ice = _present(p.q2), _present(p.q3)
    return _share(liquid - ice, liquid + ice)


def _present(water: Tensor, trace: float = TRACE) -> Tensor:
    """Water of a trace or more, kg/kg; 0 elsewhere."""
    return torch.where(water >= trace, water, 0.0)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 where the whole is 0."""
    return torch.where(whole > 0, part, 0.0) / torch.where(whole > 0, whole, 1.0)


def _difference(profile: Tensor) -> Tensor:
    """Each level less the one below it; the last has none below and gets 0."""
    difference = torch.zeros_like(profile)
    difference[:, :-1] = profile[:, :-1] - profile[:, 1:]
    return difference


FEATURES: dict[str, Callable[[Profiles], Tensor]] = {
    function.__name__: function
    for function in (
        temperature_difference,
        humidity_difference,
        u_difference,
        v_difference,
        temperature_humidity_ratio,
        air_total,
        moisture_transport,
        moisture_transport_reference,
        liquid_partition,
        condensate_imbalance,
    )
}


def check_features(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a recipe's ``data.features``. Raises UserError for an unknown name, with the closest, or one given twice."""
    for name in names:
        if name not in FEATURES:
            close = difflib.get_close_matches(name, FEATURES, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"data.features: unknown feature {name!r}; {hint}known ones are {', '.join(FEATURES)}")
        if list(names).count(name) > 1:
            raise UserError(f"data.features: {name!r} is given more than once, expected every feature once")
    return tuple(names)


class EngineeredFeatures(nn.Module):
    """The named features of raw columns, in the order of their names."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.functions = nn.ModuleList([_Feature(FEATURES[name]) for name in check_features(names)])
        self.starts = [INPUTS[variable.name].start for variable in (*STATE, *GASES)]
        self.levels = STATE[0].levels

    def forward(self, x_bi: Tensor) -> list[Tensor]:
        """Raw columns ``(b, 556)`` to one float64 ``(b, 60)`` per feature; what overflows is the largest float64."""
        x = x_bi.to(torch.float64)
        t, q1, q2, q3, u, v, ozone, ch4, n2o = [x[:, start : start + self.levels] for start in self.starts]
        profiles = Profiles(t, q1, q2, q3, u, v, ozone, ch4, n2o)
        return [torch.nan_to_num(function(profiles)) for function in self.functions]


class _Feature(nn.Module):
    """A function as a module, since TorchScript looks functions up in modules, not in a dictionary."""

    def __init__(self, function: Callable[[Profiles], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, profiles: Profiles) -> Tensor:
        return self.function(profiles)
