"""From raw physical columns to physical tendencies: the transform, the network, its inverse, and the physics that is known exactly."""

# annotations stay objects in this file: TorchScript reads those of the buffers
import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.schema import STEP_SECONDS, VariableSet
from leapray.data.transform import Transform


class Physics(nn.Module):
    """What holds for every column without learning, applied once to physical predictions.

    Targets that are always 0 are 0; the exact ones are ``-state / 1200``; no water species loses more in a step than there is:
    ``ptend_q = max(ptend_q, -state_q / 1200)``; and no flux or precipitation at the surface is negative.
    """

    water: Tensor
    state: Tensor
    zero: Tensor
    exact: Tensor
    flux: Tensor

    def __init__(self, variables: VariableSet) -> None:
        super().__init__()
        self.step_seconds = float(STEP_SECONDS)
        targets = variables.targets
        water = [column for name in targets.water for column in targets.columns[targets[name]]]
        self.has_water = len(water) > 0
        # the first column where there is no water, since torch.export cannot load an empty tensor again
        places = torch.from_numpy(targets.places(water or targets.columns[:1]))
        self.register_buffer("water", places, persistent=False)
        sources = variables.source_of(water) if water else np.zeros(1, dtype=int)
        self.register_buffer("state", torch.from_numpy(sources), persistent=False)
        self.register_buffer("zero", torch.from_numpy(targets.zero.copy()), persistent=False)
        self.register_buffer("exact", torch.from_numpy(targets.exact.copy())[places], persistent=False)
        self.register_buffer("flux", torch.from_numpy(targets.mask(one.name for one in targets.scalars)), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions ``y (b, t)`` for raw columns ``x (b, i)``, corrected, as float64; neither argument is changed."""
        y = y.double()
        if self.has_water:
            removal = (0.0 - x.index_select(1, self.state).double()) / self.step_seconds
            water = torch.maximum(y.index_select(1, self.water), removal)
            y = y.index_copy(1, self.water, torch.where(self.exact, removal, water))
        y = torch.where(self.flux, y.clamp_min(0.0), y)
        return y.masked_fill(self.zero, 0.0)


class Emulator(nn.Module):
    """Raw physical columns ``(b, i)``, float64 or float32, to physical tendencies and fluxes ``(b, t)``, float64.

    ``tendencies`` is the prediction before the physics; an ensemble averages those of its members and applies ``physics`` once.
    """

    def __init__(self, transform: Transform, network: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.network = network
        self.physics = Physics(transform.variables)

    @torch.jit.export
    def tendencies(self, x: Tensor) -> Tensor:
        """Physical predictions ``(b, t)``, float64, as the network gives them."""
        return self.transform.unscale_targets(self.network(self.transform.scale_inputs(x)), x)

    def forward(self, x: Tensor) -> Tensor:
        return self.physics(x, self.tendencies(x))
