"""One linear map of the flat columns: what ridge regression solves for, as a network like any other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.schema import INPUTS, LEVELS, TARGETS
from leapray.evaluation.baselines import LinearModel
from leapray.registry import Options


class LinearOptions(Options):
    """No options."""


class Linear(nn.Module):
    """Scaled inputs ``(B, 556 + 60 * features)`` to scaled targets ``(B, 368)``."""

    def __init__(self, options: LinearOptions, features: int = 0) -> None:
        super().__init__()
        self.map = nn.Linear(INPUTS.width + LEVELS * features, TARGETS.width)

    def forward(self, x_bi: Tensor) -> Tensor:
        return self.map(x_bi)


def solved(model: LinearModel) -> Linear:
    """A network with solved coefficients ``(I, 368)`` and intercept ``(368,)``."""
    network = Linear(LinearOptions(), (len(model.coefficients) - INPUTS.width) // LEVELS)
    values = {"map.weight": model.coefficients.T, "map.bias": model.intercept}
    network.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in values.items()})
    return network
