"""The network for low-res and high-res data: an embedding of each level, a deep BiLSTM, and heads on pooled levels.

Letters after an underscore name a tensor's axes: b batch, i inputs, l levels (the model top first), c channels, h hidden, t targets.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from leapray.climsim.schema import Channels, Layout
from leapray.errors import UserError
from leapray.models.layers import ACTIVATIONS, Activation, FeaturesAt, Head, LevelChannels
from leapray.registry import Options

_INNER, _OUTER = 5, 3
"""What the original divides the input of each of the three layers by, and its output."""
_NEIGHBOURS = 3
"""Levels that the average over neighbours takes: one above, the level itself, one below."""


class LowResHighResOptions(Options):
    """Sizes of the network; the defaults are those of attention-256, 11 679 279 parameters.

    The original's other two: mean-280 has embedding 300, hidden 280, pooling mean (13 626 630 parameters); attention-320 has hidden
    320, head 1024, dropout 0.05 (18 152 687).
    """

    embedding: PositiveInt = 256
    hidden: PositiveInt = 256
    """Of each direction of each layer of the LSTM."""
    layers: PositiveInt = 6
    head: PositiveInt = 800
    """Width of a level after the LSTM, of which the heads are made."""
    dropout: float = Field(0.01, ge=0, lt=1)
    """Between the layers of the LSTM."""
    pooling: Literal["attention", "mean"] = "attention"
    """How the levels become one for the scalar targets."""
    activation: Activation = "elu"
    confidence: bool = False
    """Also predict the loss of each target, in training only."""
    features_at: FeaturesAt = "after-state"
    """Place of engineered features among a level's channels; the original has none."""


class LowResHighRes(nn.Module):
    """Scaled inputs ``(b, i)`` to scaled targets ``(b, t)``, or ``(b, 2 t)`` with confidence in training.

    A level's channels are embedded and go through the LSTM. Each level is then joined with the mean of all levels, its embedding,
    and the average of itself and its two neighbours, in which, as in the original, zeros stand above the top and below the ground
    and count. Everything starts as PyTorch's layers do.
    """

    recurrent = True

    def __init__(self, options: LowResHighResOptions, channels: Channels) -> None:
        super().__init__()
        self.divisor = _INNER
        self.channels = LevelChannels(channels, options.features_at)
        self.activation = ACTIVATIONS[options.activation]()
        self.embedding = nn.Linear(self.channels.count, options.embedding)
        self.lstm = nn.LSTM(
            options.embedding,
            options.hidden,
            options.layers,
            batch_first=True,
            dropout=options.dropout if options.layers > 1 else 0.0,
            bidirectional=True,
        )
        self.neighbours = nn.AvgPool1d(_NEIGHBOURS, stride=1, padding=_NEIGHBOURS // 2, count_include_pad=True)
        self.joined = nn.Linear(3 * 2 * options.hidden + options.embedding, options.head)
        self.head = Head(
            lambda: LevelHeads(channels.targets, self.channels.levels, options.head, options.pooling, options.activation),
            options.confidence,
        )

    def forward(self, x_bi: Tensor) -> Tensor:
        embedded_blh = self.activation(self.embedding(self.channels(x_bi) / self.divisor))
        h_blh, _ = self.lstm(embedded_blh / self.divisor)
        mean_blh = h_blh.mean(1, keepdim=True).expand_as(h_blh)
        near_blh = self.neighbours(h_blh.transpose(1, 2)).transpose(1, 2)
        h_blh = torch.cat([h_blh, mean_blh, embedded_blh, near_blh], dim=2)
        return self.head(self.activation(self.joined(h_blh / self.divisor)))


class LevelHeads(nn.Module):
    """Levels ``(b, l, width)`` to targets ``(b, t)``, profiles first.

    Each level gives its values of the profiles, all levels pooled the scalars.

    Each target ``y`` ends as ``(weight * y + bias) / 3``, with a weight and a bias of its own. They start uniformly in ±t^(-1/2), for
    in the original they are the weights of linear layers from t to 1; the biases of those, which it never uses, are left out.
    """

    def __init__(self, targets: Layout, levels: int, width: int, pooling: Literal["attention", "mean"], activation: Activation) -> None:
        super().__init__()
        if targets.variables != (*targets.profiles, *targets.scalars):
            raise UserError("network low-res-high-res gives profiles before scalars; list data.variables.targets in that order")
        if targets.profiles and levels != targets.levels:
            raise UserError("network low-res-high-res needs a profile among data.variables.inputs to predict profiles")
        self.divisor = _OUTER
        self.profiles = nn.Linear(width, len(targets.profiles))
        self.attention = nn.Linear(width, 1) if pooling == "attention" else None
        self.scalars = nn.Sequential(nn.Linear(width, 2 * width), ACTIVATIONS[activation](), nn.Linear(2 * width, len(targets.scalars)))
        bound = targets.width**-0.5
        self.weight = nn.Parameter(torch.empty(targets.width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(targets.width).uniform_(-bound, bound))

    def forward(self, h_blh: Tensor) -> Tensor:
        profiles_bt = self.profiles(h_blh).transpose(1, 2).flatten(1)
        y_bt = torch.cat([profiles_bt, self.scalars(self._pooled(h_blh))], dim=1)
        return (self.weight * y_bt + self.bias) / self.divisor

    def _pooled(self, h_blh: Tensor) -> Tensor:
        if self.attention is None:
            return h_blh.mean(1)
        share_bl = self.attention(h_blh).squeeze(2).softmax(1)
        return torch.bmm(share_bl.unsqueeze(1), h_blh).squeeze(1)
