"""A plain multilayer perceptron over the flat columns: the baseline that knows nothing of levels."""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from leapray.climsim.schema import Channels
from leapray.models.layers import Activation, Head, perceptron
from leapray.registry import Options


class MLPOptions(Options):
    """Widths of the hidden layers, what follows each of them, and how much of it is dropped in training."""

    hidden: tuple[PositiveInt, ...] = (512, 512, 512)
    activation: Activation = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    confidence: bool = False
    """Also predict the loss of each target, in training only."""


class MLP(nn.Module):
    """Scaled inputs ``(B, i)`` to scaled targets ``(B, t)``, or ``(B, 2 t)`` with confidence in training."""

    def __init__(self, options: MLPOptions, channels: Channels) -> None:
        super().__init__()
        widths = (channels.inputs.width, *options.hidden, channels.targets.width)
        self.body = perceptron(widths, options.activation, options.dropout)[:-1]
        self.head = Head(lambda: perceptron(widths[-2:]), options.confidence)

    def forward(self, x_bi: Tensor) -> Tensor:
        return self.head(self.body(x_bi))
