"""Pieces that several networks share: the column as levels of channels, perceptrons, and heads.

Letters after an underscore name a tensor's axes: b batch, i inputs, l levels (the model top first), c channels.
"""

# annotations stay objects in this file: TorchScript reads those of the buffers
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from leapray.climsim.schema import Channels

Activation = Literal["relu", "elu", "gelu", "silu"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}
FeaturesAt = Literal["first", "after-state", "last"]


def perceptron(widths: Sequence[int], activation: Activation = "relu", dropout: float = 0.0) -> nn.Sequential:
    """Linear layers ``widths[0] -> ... -> widths[-1]``, activation (and dropout) between them and none at the end.

    Weights are Xavier-uniform and biases 0.
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


class LevelChannels(nn.Module):
    """Flat columns ``(b, i)`` as levels of channels ``(b, l, count)``.

    A level's channels are the profiles of the state, those of gases, the scalars repeated, and one more for each engineered feature, which
    stand before all others, after the state, or last.
    """

    places: Tensor

    def __init__(self, channels: Channels, features_at: FeaturesAt = "after-state") -> None:
        super().__init__()
        layout, self.levels = channels.inputs, channels.inputs.levels
        split = len(layout.variables) - channels.features
        own, features = layout.variables[:split], layout.variables[split:]
        gases = [variable for variable in own if variable.levels > 1 and variable.name.startswith("pbuf_")]
        state = [variable for variable in own if variable.levels > 1 and variable not in gases]
        groups = [state, gases, [variable for variable in own if variable.levels == 1]]
        groups.insert({"first": 0, "after-state": 1, "last": 3}[features_at], list(features))
        order = [layout[variable.name] for group in groups for variable in group]
        self.count = len(order)
        # a scalar stands at every level
        places = [torch.arange(one.start, one.stop).expand(self.levels) for one in order]
        self.register_buffer("places", torch.cat(places), persistent=False)

    def forward(self, x_bi: Tensor) -> Tensor:
        return x_bi.index_select(1, self.places).view(x_bi.shape[0], self.count, self.levels).transpose(1, 2)


class Head(nn.Module):
    """What ``build`` makes, as a network's end: ``h`` to ``(B, t)``, in the type of its own weights even where autocast lowers ``h``.

    With ``confidence`` there are two of them, alike in shape: in training the second follows the first, ``(B, 2 t)``, and learns to
    predict the first one's losses, as one of the leading solutions of the LEAP competition did; in evaluation the first is alone.
    """

    def __init__(self, build: Callable[[], nn.Module], confidence: bool = False) -> None:
        super().__init__()
        self.prediction = build()
        self.confidence = build() if confidence else None

    def forward(self, h: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # autocast with a device chosen at run time is beyond TorchScript, and exported models run without it
            return self._outputs(h)
        with torch.autocast(h.device.type, enabled=False):
            return self._outputs(h.to(next(self.prediction.parameters()).dtype))

    def _outputs(self, h: Tensor) -> Tensor:
        y: Tensor = self.prediction(h)
        if self.confidence is not None and self.training:
            y = torch.cat([y, self.confidence(h)], dim=1)
        return y
