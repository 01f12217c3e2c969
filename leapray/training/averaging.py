"""Averages of a network's weights over the steps of its training."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from leapray import recipe

_RAMP_POWER = -2 / 3


class MovingAverage:
    """An exponential moving average of a network's weights, equal to that of the library which the original used (FACTS 4d).

    ema-pytorch (before 0.7; later ones average the first update beyond ``after`` too) counts the steps before an update: after step
    ``t``, from 1, its count is ``t - 1``. Updates come at counts divisible by ``every``. Those up to ``after``, and the first beyond it,
    copy the weights ``w``; later ones, ``s = count - after`` past the start, make ``average = d * average + (1 - d) * w``, where ``d``
    is ``decay``, with a ramp ``min(decay, 1 - (1 + s)^(-2/3))``.
    Buffers are copied at every update. Nothing here waits for the device.
    """

    network: nn.Module
    """The averaged network, on the device of the other; its parameters take no gradient."""

    def __init__(self, network: nn.Module, settings: recipe.MovingAverage) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self._source = network
        self._settings = settings
        for module in self.network.modules():
            if isinstance(module, nn.RNNBase):
                # cuDNN wants a layer's weights in one piece, which copying took apart
                module.flatten_parameters()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, counted from 1 through the whole run."""
        count = step - 1
        if count % self._settings.every:
            return
        average = get_ema_multi_avg_fn(self._decay(count))  # type: ignore[no-untyped-call]
        average(list(self.network.parameters()), list(self._source.parameters()), count)
        for copy, buffer in zip(self.network.buffers(), self._source.buffers(), strict=True):
            copy.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """The average's own weights and buffers; where it stands follows from the step."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state)

    def _decay(self, count: int) -> float:
        """What stays of the average at an update; 0 makes it a copy of the weights."""
        since = count - self._settings.after
        if since <= self._settings.every:
            return 0.0
        return min(self._settings.decay, 1 - (1 + since) ** _RAMP_POWER) if self._settings.ramp else self._settings.decay
