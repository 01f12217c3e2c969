"""What is exported: one or several emulators with all that a host model needs around them, as one scriptable module.

Shapes: b rows; n inputs of the host's layout; i raw inputs of the members; m members; t targets.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import STEP_SECONDS, Layout, VariableSet, common
from leapray.data.transform import Transform
from leapray.inference.export.layouts import HostInputs, HostLayout
from leapray.inference.weights import Combination
from leapray.models.emulator import Emulator, Physics


def inside(variables: VariableSet) -> tuple[str, ...]:
    """What the exported module does, in words, for the json beside it."""
    targets = variables.targets
    zero, exact = (
        sorted({int(column.rpartition("_")[2]) for column in np.array(targets.columns)[mask]}) for mask in (targets.zero, targets.exact)
    )
    physics = [f"water and wind of levels {zero[0]} to {zero[-1]} do not change"] if zero else []
    if exact:
        physics.append(f"ptend_q0002 of levels {exact[0]} to {exact[-1]} is -state_q0002 / {STEP_SECONDS} s")
    physics.append("no water species loses more in a step than there is")
    return (
        "an input that is not finite is replaced by the value that the first member scales to 0, its training mean or that of its "
        "logarithm; one that no network gets as it is, by the mean of the competition's training rows",
        "inputs are scaled in float64 by each member's own transform, extreme values clipped as it says, and go through the network as "
        "float32",
        "a member's output that is not finite is replaced by the target's training mean",
        "members' physical outputs are averaged with their weights, one for each output, in float64",
        f"then the physics, once: {'; '.join(physics)}",
        "the fluxes at the surface, all of cam_out, are not negative",
        "inputs are not modified; the number of rows is free",
    )


def raw_columns(transform: Transform, z_bs: Tensor) -> Tensor:
    """Raw columns ``(b, i)``, float64, whose scaled inputs are ``z_bs (b, s)``.

    Variables that the network does not get as they are, such as specific humidity where it gets relative humidity, have the mean of the
    competition's training rows.
    """
    variables, x_bs = transform.variables, transform.inputs.inverse(z_bs)
    parts = []
    for variable in variables.raw.variables:
        if variable.name in variables.inputs:
            parts.append(x_bs[:, variables.inputs[variable.name]])
        else:
            parts.append(torch.from_numpy(competition_columns(Layout([variable])).mean).expand(len(z_bs), -1))
    return torch.cat(parts, dim=1)


class _OfRaw(nn.Module):
    """A member's own output, before the physics, from the raw columns that all members together need."""

    places: Tensor

    def __init__(self, emulator: Emulator, raw: Layout) -> None:
        super().__init__()
        own = emulator.transform.variables.raw
        self.emulator = emulator
        self.whole = own == raw
        self.register_buffer("places", torch.from_numpy(raw.places(own.columns)), persistent=False)

    def forward(self, x_bi: Tensor) -> Tensor:
        return self.emulator.tendencies(x_bi if self.whole else x_bi.index_select(1, self.places))


class CoupledEmulator(nn.Module):
    """Raw inputs of a host's layout ``(b, n)`` to physical tendencies and fluxes ``(b, t)``, always finite.

    float32 inputs give float32 outputs, any other type float64; all between them is float64 but the networks. The mean of the members'
    physical predictions is taken with the weights of ``combination`` before the physics, which is applied once, as in prediction.
    """

    weights: Tensor
    constant: Tensor
    input_means: Tensor
    target_means: Tensor

    def __init__(self, emulators: Sequence[Emulator], combination: Combination, host: HostLayout) -> None:
        super().__init__()
        self.variables = common(emulator.transform.variables for emulator in emulators)
        raw = self.variables.raw
        self.layout = HostInputs(host, raw)
        self.width = self.layout.width
        self.members = nn.ModuleList([_OfRaw(emulator, raw) for emulator in emulators])
        self.physics = Physics(self.variables)
        self.register_buffer("weights", torch.from_numpy(combination.weights).unsqueeze(1))
        self.register_buffer("constant", torch.from_numpy(combination.constant))
        self.register_buffer("input_means", self._means([emulator.transform for emulator in emulators]))
        means = [torch.from_numpy(emulator.transform.statistics.mean).unsqueeze(0) for emulator in emulators]
        self.register_buffer("target_means", torch.stack(means))
        self.largest = torch.finfo(torch.float32).max

    def _means(self, transforms: Sequence[Transform]) -> Tensor:
        """What takes the place of a raw input that is not finite ``(i,)``: of the first member that has the variable."""
        parts = []
        for name in self.variables.raw.names:
            transform = next(one for one in transforms if name in one.variables.raw)
            zeros = torch.zeros(1, transform.inputs.mean.numel())
            parts.append(raw_columns(transform, zeros)[0, transform.variables.raw[name]])
        return torch.cat(parts)

    def forward(self, x_bn: Tensor) -> Tensor:
        assert x_bn.shape[1] == self.width, f"expected inputs (rows, {self.width})"
        x_bi = self.layout(x_bn, self.input_means)
        y_mbt = torch.stack([member(x_bi) for member in self.members])
        y_mbt = torch.where(y_mbt.isfinite(), y_mbt, self.target_means)
        y_bt = self.physics(x_bi, (self.weights * y_mbt).sum(0) + self.constant)
        if x_bn.dtype == torch.float32:
            y_bt = y_bt.clamp(-self.largest, self.largest).to(torch.float32)
        return y_bt
