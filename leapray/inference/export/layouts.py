"""The orders of inputs that host models pass, and how each becomes the raw columns of a model, as scriptable float64 torch.

Shapes: b rows; n inputs of the host's layout; i raw inputs of the model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leapray.climsim import grid
from leapray.climsim.schema import KAGGLE, MISSING, RELATIVE_HUMIDITY, V2_RH, Layout
from leapray.data.humidity import SaturationHumidity
from leapray.errors import UserError

TEMPERATURE, HUMIDITY, SURFACE_PRESSURE = "state_t", "state_q0001", "state_ps"


@dataclass(frozen=True)
class HostLayout:
    """A layout that a host passes: its variables in order."""

    name: str
    inputs: Layout

    def inside(self, raw: Layout) -> tuple[str, ...]:
        """What :class:`HostInputs` does to give these raw columns, in words."""
        told = []
        if HUMIDITY in raw and HUMIDITY not in self.inputs:
            told.append(
                f"{HUMIDITY} is {RELATIVE_HUMIDITY.name} times saturation, of ClimSim's definition, at {TEMPERATURE} and the pressure "
                f"hyam * {grid.REFERENCE_PRESSURE:g} Pa + hybm * {SURFACE_PRESSURE}"
            )
        unused = [name for name in self.inputs.names if name not in raw and name != RELATIVE_HUMIDITY.name]
        return (*told, *(f"{name} is not used" for name in unused))


HOST_LAYOUTS = {layout.name: layout for layout in (HostLayout("kaggle556", KAGGLE.inputs), HostLayout("v2_rh557", V2_RH.inputs))}
"""The LEAP competition's inputs, and ClimSim's v2_rh, which the coupled model passes."""


class HostInputs(nn.Module):
    """Inputs of a host's layout to raw columns; specific humidity is found from relative humidity where the host passes that.

    Raises UserError for a raw variable that the host does not pass.
    """

    places: Tensor
    a_mid: Tensor
    b_mid: Tensor

    def __init__(self, host: HostLayout, raw: Layout) -> None:
        super().__init__()
        layout = host.inputs
        self.from_relative = HUMIDITY in raw and HUMIDITY not in layout
        sources = [RELATIVE_HUMIDITY.name if self.from_relative and name == HUMIDITY else name for name in raw.names]
        if missing := [name for name in sources if name not in layout]:
            raise UserError(f"--layout {host.name} does not pass {', '.join(missing)}, which the model needs")
        places = [place for name in sources for place in range(layout[name].start, layout[name].stop)]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.as_they_are = places == list(range(layout.width))
        self.width = layout.width
        self.profile_starts = [layout[variable.name].start for variable in layout.profiles]
        self.saturation = SaturationHumidity()
        levels = grid.hybrid_levels()
        self.register_buffer("a_mid", torch.from_numpy(levels.a_mid * grid.REFERENCE_PRESSURE), persistent=False)
        self.register_buffer("b_mid", torch.from_numpy(levels.b_mid.copy()), persistent=False)
        self.t_start = self.t_stop = self.q_start = self.q_stop = self.ps = 0
        if self.from_relative:
            self.t_start, self.t_stop = raw[TEMPERATURE].start, raw[TEMPERATURE].stop
            self.q_start, self.q_stop = raw[HUMIDITY].start, raw[HUMIDITY].stop
            self.ps = raw[SURFACE_PRESSURE].start

    def forward(self, x_bn: Tensor, substitute_i: Tensor) -> Tensor:
        """Raw inputs of any float type to float64 ``(b, i)``, in which ``substitute_i (i,)`` takes the place of what is not finite."""
        if self.as_they_are:
            return _substituted(x_bn.double(), substitute_i)
        x_bi = x_bn.double().index_select(1, self.places)
        known = _substituted(x_bi, substitute_i)
        if not self.from_relative:
            return known
        humidity = x_bi[:, self.q_start : self.q_stop] * self._saturation(known)
        return torch.cat(
            [known[:, : self.q_start], _substituted(humidity, substitute_i[self.q_start : self.q_stop]), known[:, self.q_stop :]], dim=1
        )

    def of_columns(self, x_bi: Tensor) -> Tensor:
        """The host's inputs for raw columns, float64; one that is not among them has the value of snow where there is no sea ice."""
        x_bi = x_bi.double().clone()
        if self.from_relative:
            x_bi[:, self.q_start : self.q_stop] /= self._saturation(x_bi)
        x_bn = torch.full((len(x_bi), self.width), MISSING, dtype=torch.float64)
        x_bn[:, self.places] = x_bi
        return x_bn

    def _saturation(self, x_bi: Tensor) -> Tensor:
        pressure = self.a_mid + self.b_mid * x_bi[:, self.ps : self.ps + 1]
        return self.saturation(x_bi[:, self.t_start : self.t_stop], pressure)


def _substituted(x: Tensor, substitute: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, substitute)


def host_layout(name: str) -> HostLayout:
    """A layout by name. Raises UserError for an unknown one."""
    if name not in HOST_LAYOUTS:
        raise UserError(f"--layout is {name!r}; known ones are {', '.join(HOST_LAYOUTS)}")
    return HOST_LAYOUTS[name]
