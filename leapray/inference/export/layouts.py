"""The orders of inputs that host models pass, and how each becomes the flat layout, as scriptable float64 torch.

Shapes: b rows; n inputs of the host's layout; i = 556 inputs of the flat layout.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leapray.climsim import grid
from leapray.climsim.schema import GASES, INPUTS, LEVELS, MISSING, SNOWHICE, SNOWHLAND, STATE, SURFACE, Layout, Variable
from leapray.data.humidity import SaturationHumidity
from leapray.errors import UserError

TEMPERATURE, HUMIDITY, SURFACE_PRESSURE = "state_t", "state_q0001", "state_ps"
RELATIVE_HUMIDITY = Variable("state_rh", "1", "relative humidity over liquid and ice", LEVELS)
V2_RH = Layout((*(RELATIVE_HUMIDITY if v.name == HUMIDITY else v for v in STATE), *GASES, *SURFACE, SNOWHICE, SNOWHLAND))
"""ClimSim's v2_rh (FACTS section 1): relative for specific humidity, the gases before the scalars, and one scalar more."""


class Kaggle556(nn.Module):
    """The flat layout itself."""

    def __init__(self) -> None:
        super().__init__()
        self.width = INPUTS.width

    def forward(self, x_bn: Tensor, substitute_i: Tensor) -> Tensor:
        """Raw inputs of any float type to float64 ``(b, 556)``, in which ``substitute_i (556,)`` takes the place of what is not finite."""
        return _substituted(x_bn.double(), substitute_i)

    def of_columns(self, x_bi: Tensor) -> Tensor:
        """The host's inputs for flat columns, float64."""
        return x_bi.double()


class V2RH557(nn.Module):
    """ClimSim's v2_rh: specific humidity is found from relative humidity, temperature and surface pressure; SNOWHICE is not used."""

    places: Tensor
    a_mid: Tensor
    b_mid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.saturation = SaturationHumidity()
        names = [RELATIVE_HUMIDITY.name if variable.name == HUMIDITY else variable.name for variable in INPUTS.variables]
        places = [place for name in names for place in range(V2_RH[name].start, V2_RH[name].stop)]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        levels = grid.hybrid_levels()
        self.register_buffer("a_mid", torch.from_numpy(levels.a_mid * grid.REFERENCE_PRESSURE), persistent=False)
        self.register_buffer("b_mid", torch.from_numpy(levels.b_mid.copy()), persistent=False)
        self.width = V2_RH.width
        self.t_start, self.t_stop = INPUTS[TEMPERATURE].start, INPUTS[TEMPERATURE].stop
        self.q_start, self.q_stop = INPUTS[HUMIDITY].start, INPUTS[HUMIDITY].stop
        self.ps = INPUTS[SURFACE_PRESSURE].start

    def forward(self, x_bn: Tensor, substitute_i: Tensor) -> Tensor:
        """Raw inputs of any float type to float64 ``(b, 556)``, in which ``substitute_i (556,)`` takes the place of what is not finite."""
        x_bi = x_bn.double().index_select(1, self.places)
        humidity = x_bi[:, self.q_start : self.q_stop]
        known = _substituted(x_bi, substitute_i)
        humidity = humidity * self._saturation(known)
        return torch.cat(
            [known[:, : self.q_start], _substituted(humidity, substitute_i[self.q_start : self.q_stop]), known[:, self.q_stop :]], dim=1
        )

    def of_columns(self, x_bi: Tensor) -> Tensor:
        """The host's inputs for flat columns, float64; SNOWHICE has the value that it has where there is no sea ice."""
        x_bi = x_bi.double().clone()
        x_bi[:, self.q_start : self.q_stop] /= self._saturation(x_bi)
        x_bn = torch.full((len(x_bi), V2_RH.width), MISSING, dtype=torch.float64)
        x_bn[:, self.places] = x_bi
        return x_bn

    def _saturation(self, x_bi: Tensor) -> Tensor:
        pressure = self.a_mid + self.b_mid * x_bi[:, self.ps : self.ps + 1]
        return self.saturation(x_bi[:, self.t_start : self.t_stop], pressure)


def _substituted(x: Tensor, substitute: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, substitute)


@dataclass(frozen=True)
class HostLayout:
    """A layout that a host passes: its variables in order, and the module that makes the flat layout of it."""

    name: str
    inputs: Layout
    to_columns: type[Kaggle556] | type[V2RH557]
    inside: tuple[str, ...] = ()
    """What that module does, in words."""


HOST_LAYOUTS = {
    layout.name: layout
    for layout in (
        HostLayout("kaggle556", INPUTS, Kaggle556),
        HostLayout(
            "v2_rh557",
            V2_RH,
            V2RH557,
            (
                f"{HUMIDITY} is {RELATIVE_HUMIDITY.name} times saturation, of ClimSim's definition, at {TEMPERATURE} and the pressure "
                f"hyam * {grid.REFERENCE_PRESSURE:g} Pa + hybm * {SURFACE_PRESSURE}",
                f"{SNOWHICE.name} is not used",
            ),
        ),
    )
}


def host_layout(name: str) -> HostLayout:
    """A layout by name. Raises UserError for an unknown one."""
    if name not in HOST_LAYOUTS:
        raise UserError(f"--layout is {name!r}; known ones are {', '.join(HOST_LAYOUTS)}")
    return HOST_LAYOUTS[name]
