"""Losses over the columns that are learned: never the ablated targets, nor those that the input gives exactly (FACTS section 2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import PositiveFloat
from torch import Tensor, nn

from leapray.climsim.schema import LEARNED
from leapray.registry import Options, Registry


class LearnedColumnsLoss(nn.Module):
    """Mean of an elementwise loss over rows and learned columns, in float32 whatever the precision of the network.

    ``forward(prediction (b, 368), target (b, 368))`` takes scaled values and gives a scalar. The other columns are left out, not
    multiplied by zero, so that not even a NaN in them can matter.
    """

    learned: Tensor

    def __init__(self, elementwise: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.elementwise = elementwise
        self.register_buffer("learned", torch.from_numpy(np.flatnonzero(LEARNED)), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.elementwise(prediction.index_select(1, self.learned).float(), target.index_select(1, self.learned).float())


class HuberOptions(Options):
    delta: PositiveFloat = 1.0
    """Error, in scaled units, at which the loss turns from quadratic to linear."""


class PlainOptions(Options):
    """No options."""


def _huber(options: HuberOptions) -> LearnedColumnsLoss:
    return LearnedColumnsLoss(lambda prediction, target: F.huber_loss(prediction, target, delta=options.delta))


def _mae(_: PlainOptions) -> LearnedColumnsLoss:
    return LearnedColumnsLoss(F.l1_loss)


def _mse(_: PlainOptions) -> LearnedColumnsLoss:
    return LearnedColumnsLoss(F.mse_loss)


LOSSES: Registry[LearnedColumnsLoss] = Registry(
    "training.loss", {"huber": (HuberOptions, _huber), "mae": (PlainOptions, _mae), "mse": (PlainOptions, _mse)}
)
