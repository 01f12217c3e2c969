"""Averages of a network's weights over the steps of its training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from leapray import recipe

_RAMP_POWER = -2 / 3
_BATCH_NORM_STEPS = 100


class WeightAverage(ABC):
    """An average of a network's weights, which a training validates and saves in its place once it has members."""

    network: nn.Module
    """The averaged network, on the device of the other; its parameters take no gradient."""

    def __init__(self, network: nn.Module) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self._source = network
        for module in self.network.modules():
            if isinstance(module, nn.RNNBase):
                # cuDNN wants a layer's weights in one piece, which copying took apart
                module.flatten_parameters()

    @property
    @abstractmethod
    def members(self) -> int | None:
        """How many weights the average is made of; None where it is always one."""

    @abstractmethod
    def step_ended(self, step: int) -> None:
        """After optimizer step ``step``, counted from 1 through the whole run."""

    @abstractmethod
    def epoch_ended(self, epoch: int) -> None:
        """After the last step of epoch ``epoch``, counted from 1."""

    def state_dict(self) -> dict[str, Any]:
        """The average's own weights and buffers; where it stands follows from the step."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state)

    def _take_in(self, average: Callable[..., None], count: int) -> None:
        with torch.no_grad():
            average(list(self.network.parameters()), list(self._source.parameters()), count)
            for copy, buffer in zip(self.network.buffers(), self._source.buffers(), strict=True):
                copy.copy_(buffer)


class EpochMean(WeightAverage):
    """Stochastic weight averaging: after the end of epoch ``start + n - 1`` the plain mean of the weights at the last n ends."""

    def __init__(self, network: nn.Module, settings: recipe.EqualAverage) -> None:
        super().__init__(network)
        self._start, self._members = settings.start, 0

    @property
    def members(self) -> int:
        return self._members

    def step_ended(self, step: int) -> None:
        pass

    def epoch_ended(self, epoch: int) -> None:
        if epoch >= self._start:
            # the first member is copied
            average = get_swa_multi_avg_fn() if self._members else get_ema_multi_avg_fn(0.0)  # type: ignore[no-untyped-call]
            self._take_in(average, self._members)
            self._members += 1

    def state_dict(self) -> dict[str, Any]:
        return {"members": self._members, "network": super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._members = state["members"]
        super().load_state_dict(state["network"])


class MovingAverage(WeightAverage):
    """An exponential moving average of a network's weights, equal to that of the library which the original used.

    ema-pytorch (before 0.7; later ones average the first update beyond ``after`` too) counts the steps before an update: after step
    ``t``, from 1, its count is ``t - 1``. Updates come at counts divisible by ``every``. Those up to ``after``, and the first beyond it,
    copy the weights ``w``; later ones, ``s = count - after`` past the start, make ``average = d * average + (1 - d) * w``, where ``d``
    is ``decay``, with a ramp ``min(decay, 1 - (1 + s)^(-2/3))``.
    Buffers are copied at every update. Nothing here waits for the device.
    """

    def __init__(self, network: nn.Module, settings: recipe.MovingAverage) -> None:
        super().__init__(network)
        self._settings = settings

    @property
    def members(self) -> None:
        return None

    def step_ended(self, step: int) -> None:
        count = step - 1
        if count % self._settings.every == 0:
            self._take_in(get_ema_multi_avg_fn(self._decay(count)), count)  # type: ignore[no-untyped-call]

    def epoch_ended(self, epoch: int) -> None:
        pass

    def _decay(self, count: int) -> float:
        """What stays of the average at an update; 0 makes it a copy of the weights."""
        since = count - self._settings.after
        if since <= self._settings.every:
            return 0.0
        return min(self._settings.decay, 1 - (1 + since) ** _RAMP_POWER) if self._settings.ramp else self._settings.decay


def recompute_batch_norm(network: nn.Module, inputs: Iterator[Tensor], gather: Callable[[np.ndarray], Sequence[np.ndarray]]) -> None:
    """Give averaged weights statistics of their own: the mean of those of up to 100 batches ``(b, i)`` of every rank.

    Without batch normalisation, which none of leapray's networks has, nothing is read. What the network came with are statistics of
    other weights (Izmailov et al. 2018). Ranks give equally many batches and end with the same statistics.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return
    update_bn(islice(inputs, _BATCH_NORM_STEPS), network)
    for layer in layers:
        for statistic in (layer.running_mean, layer.running_var):
            assert statistic is not None
            mean = np.mean(gather(statistic.double().cpu().numpy()), axis=0)
            statistic.copy_(torch.from_numpy(mean))
