"""From raw physical columns to physical tendencies: the transform, the network, its inverse, and the physics that is known exactly."""

# annotations stay objects in this file: TorchScript reads those of the buffers
import torch
from torch import Tensor, nn

from leapray.climsim.schema import ABLATED, EXACT, FLUXES, INPUTS, STEP_SECONDS, TARGETS
from leapray.data.transform import Transform

_FIRST_WATER, _LAST_WATER = "q0001", "q0003"


class Physics(nn.Module):
    """What holds for every column without learning, applied once to physical predictions (DESIGN section 3, Emulator).

    Ablated targets are 0; the exact ones are ``-state_q0002 / 1200`` (FACTS section 2); no water species loses more in a step than there
    is: ``ptend_q = max(ptend_q, -state_q / 1200)`` (FACTS section 4e); and no flux or precipitation at the surface is negative.
    """

    ablated: Tensor
    exact: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.step_seconds = float(STEP_SECONDS)
        self.state_start, self.state_stop = INPUTS[f"state_{_FIRST_WATER}"].start, INPUTS[f"state_{_LAST_WATER}"].stop
        self.water_start, self.water_stop = TARGETS[f"ptend_{_FIRST_WATER}"].start, TARGETS[f"ptend_{_LAST_WATER}"].stop
        self.fluxes_start = TARGETS[FLUXES[0].name].start
        self.register_buffer("ablated", torch.from_numpy(ABLATED.copy()), persistent=False)
        self.register_buffer("exact", torch.from_numpy(EXACT[self.water_start : self.water_stop].copy()), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions ``y (B, 368)`` for raw columns ``x (B, 556)``, corrected, as float64; neither argument is changed."""
        y = y.double()
        removal = (0.0 - x[:, self.state_start : self.state_stop].double()) / self.step_seconds
        water = torch.maximum(y[:, self.water_start : self.water_stop], removal)
        water = torch.where(self.exact, removal, water)
        fluxes = y[:, self.fluxes_start :].clamp_min(0.0)
        corrected = torch.cat([y[:, : self.water_start], water, y[:, self.water_stop : self.fluxes_start], fluxes], dim=1)
        return corrected.masked_fill(self.ablated, 0.0)


class Emulator(nn.Module):
    """Raw physical columns ``(B, 556)``, float64 or float32, to physical tendencies and fluxes ``(B, 368)``, float64.

    ``tendencies`` is the prediction before the physics; an ensemble averages those of its members and applies ``physics`` once.
    """

    def __init__(self, transform: Transform, network: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.network = network
        self.physics = Physics()

    @torch.jit.export
    def tendencies(self, x: Tensor) -> Tensor:
        """Physical predictions ``(B, 368)``, float64, as the network gives them."""
        return self.transform.unscale_targets(self.network(self.transform.scale_inputs(x)), x)

    def forward(self, x: Tensor) -> Tensor:
        return self.physics(x, self.tendencies(x))
