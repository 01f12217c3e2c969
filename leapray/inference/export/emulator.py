"""What is exported: one or several emulators with all that a host model needs around them, as one scriptable module.

Shapes: b rows; n inputs of the host's layout; i = 556 raw inputs; m members; t = 368 targets.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leapray.climsim.schema import ABLATED_LEVELS, EXACT_LEVELS, INPUTS, STEP_SECONDS
from leapray.inference.export.layouts import V2RH557, Kaggle556
from leapray.inference.weights import Combination
from leapray.models.emulator import Emulator

INSIDE = (
    "an input that is not finite is replaced by the value that the first member scales to 0: its training mean, or that of its logarithm",
    "inputs are scaled in float64 by each member's own transform, extreme values clipped as it says, and go through the network as float32",
    "a member's output that is not finite is replaced by the target's training mean",
    "members' physical outputs are averaged with their weights, one for each output, in float64",
    f"then the physics, once: water and wind of levels {ABLATED_LEVELS[0]} to {ABLATED_LEVELS[-1]} do not change; ptend_q0002 of levels "
    f"{EXACT_LEVELS[0]} to {EXACT_LEVELS[-1]} is -state_q0002 / {STEP_SECONDS} s; no water species loses more in a step than there is",
    "the fluxes at the surface, all of cam_out, are not negative",
    "inputs are not modified; the number of rows is free",
)
"""What the exported module does, in words, for the json beside it."""


class CoupledEmulator(nn.Module):
    """Raw inputs of a host's layout ``(b, n)`` to physical tendencies and fluxes ``(b, 368)``, always finite.

    float32 inputs give float32 outputs, any other type float64; all between them is float64 but the networks. The mean of the members'
    physical predictions is taken with the weights of ``combination`` before the physics, which is applied once, as in prediction.
    """

    weights: Tensor
    constant: Tensor
    input_means: Tensor
    target_means: Tensor

    def __init__(self, emulators: Sequence[Emulator], combination: Combination, layout: Kaggle556 | V2RH557) -> None:
        super().__init__()
        self.layout = layout
        self.width = layout.width
        self.members = nn.ModuleList(emulators)
        self.physics = emulators[0].physics
        inputs = emulators[0].transform.inputs
        self.register_buffer("weights", torch.from_numpy(combination.weights).unsqueeze(1))
        self.register_buffer("constant", torch.from_numpy(combination.constant))
        self.register_buffer("input_means", inputs.inverse(torch.zeros(1, inputs.mean.numel()))[0, : INPUTS.width].clone())
        means = [torch.from_numpy(emulator.transform.statistics.mean).unsqueeze(0) for emulator in emulators]
        self.register_buffer("target_means", torch.stack(means))
        self.largest = torch.finfo(torch.float32).max

    def forward(self, x_bn: Tensor) -> Tensor:
        assert x_bn.shape[1] == self.width, f"expected inputs (rows, {self.width})"
        x_bi = self.layout(x_bn, self.input_means)
        y_mbt = torch.stack([member.tendencies(x_bi) for member in self.members])  # type: ignore[operator]
        y_mbt = torch.where(y_mbt.isfinite(), y_mbt, self.target_means)
        y_bt = self.physics(x_bi, (self.weights * y_mbt).sum(0) + self.constant)
        if x_bn.dtype == torch.float32:
            y_bt = y_bt.clamp(-self.largest, self.largest).to(torch.float32)
        return y_bt
