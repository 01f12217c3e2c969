"""The networks that every other one has to beat: the training mean, and one linear map of the flat columns."""

# annotations stay objects in this file: TorchScript reads those of the buffers
import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from leapray.climsim.schema import Channels
from leapray.evaluation.baselines import LinearModel
from leapray.registry import Options


class LinearOptions(Options):
    """No options."""


class RidgeOptions(Options):
    """How strongly the coefficients of ridge regression are pulled to 0."""

    alpha: PositiveFloat | None = None
    """Penalty of the squared coefficients of scaled inputs; none takes the one of 1, 10, 100 and 1000 that scores best on the validation
    rows."""


class ClimatologyOptions(Options):
    """No options."""


class Linear(nn.Module):
    """Scaled inputs ``(B, i)`` to scaled targets ``(B, t)``: trained by steps, or solved for as ridge regression."""

    def __init__(self, options: LinearOptions | RidgeOptions, channels: Channels) -> None:
        super().__init__()
        self.map = nn.Linear(channels.inputs.width, channels.targets.width)

    def forward(self, x_bi: Tensor) -> Tensor:
        return self.map(x_bi)


class Climatology(nn.Module):
    """The mean of the training rows ``(B, t)``, for any inputs: 0 where targets are scaled without departures."""

    mean: Tensor

    def __init__(self, options: ClimatologyOptions, channels: Channels) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels.targets.width))

    def forward(self, x_bi: Tensor) -> Tensor:
        return self.mean.expand(x_bi.shape[0], -1)


def solved(model: LinearModel, channels: Channels) -> Linear:
    """A network with solved coefficients ``(i, t)`` and intercept ``(t,)``."""
    network = Linear(LinearOptions(), channels)
    values = {"map.weight": model.coefficients.T, "map.bias": model.intercept}
    network.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in values.items()})
    return network
