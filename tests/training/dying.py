"""A user's own network, which once ends its process in the middle of an epoch, as a lost node would."""

import os
from pathlib import Path

import torch
from torch import nn

from leapray.climsim.schema import Channels
from leapray.registry import Options


class DyingOptions(Options):
    grave: str = ""
    """File that is written in dying, with the names of the run's checkpoints; a process that finds it lives on."""
    run: str = ""
    calls: int = 0


class Dying(nn.Module):
    Options = DyingOptions

    def __init__(self, options: DyingOptions, channels: Channels) -> None:
        super().__init__()
        self.linear = nn.Linear(channels.inputs.width, channels.targets.width)
        self.options = options
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.options.grave and self.calls > self.options.calls and not Path(self.options.grave).exists():
            states = Path(self.options.run).glob("checkpoints/*/state.json")
            Path(self.options.grave).write_text(",".join(sorted(state.parent.name for state in states)))
            os._exit(1)
        return self.linear(x)
