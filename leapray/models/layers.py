"""Pieces that several networks share: perceptrons and heads that stay in full precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "elu": nn.ELU, "silu": nn.SiLU}


def perceptron(widths: Sequence[int], activation: str = "relu", dropout: float = 0.0) -> nn.Sequential:
    """Linear layers ``widths[0] -> ... -> widths[-1]``, activation (and dropout) between them and none at the end.

    Weights are Xavier-uniform and biases 0 (FACTS section 4a).
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        if layers:
            layers += [ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout else [])]
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
    return nn.Sequential(*layers)


class FullPrecision(nn.Module):
    """Runs ``layers`` in the type of their own weights, even where autocast lowers what comes before."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, h: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # autocast with a device chosen at run time is beyond TorchScript, and exported models run without it
            return self.layers(h)
        with torch.autocast(h.device.type, enabled=False):
            return self.layers(h.to(next(self.layers.parameters()).dtype))
