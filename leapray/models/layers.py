"""Pieces that several networks share: the column as levels of channels, perceptrons, and heads.

Letters after an underscore name a tensor's axes: b batch, i inputs, l levels (60, the model top first), c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from leapray.climsim.schema import GASES, INPUTS, LEVELS, STATE

Activation = Literal["relu", "elu", "gelu", "silu"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}
FeaturesAt = Literal["first", "after-state", "last"]


def perceptron(widths: Sequence[int], activation: Activation = "relu", dropout: float = 0.0) -> nn.Sequential:
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


class LevelChannels(nn.Module):
    """Flat columns ``(B, 556 + 60 * features)`` as 60 levels of channels ``(B, 60, count)``.

    A level's channels are 6 state profiles, 3 gas profiles, 16 scalars repeated, and one more for each engineered feature, which stand
    before all others, after the state, or last.
    """

    def __init__(self, features: int = 0, features_at: FeaturesAt = "after-state") -> None:
        super().__init__()
        self.levels, self.states, self.gases, self.features = LEVELS, len(STATE), len(GASES), features
        self.features_at = {"first": 0, "after-state": 1, "last": 3}[features_at]
        self.state_stop = INPUTS[STATE[-1].name].stop
        self.gases_start = INPUTS[GASES[0].name].start
        self.gases_stop = INPUTS[GASES[-1].name].stop
        self.count = len(INPUTS.profiles) + len(INPUTS.scalars) + features

    def forward(self, x_bi: Tensor) -> Tensor:
        batch = x_bi.shape[0]
        state_bcl = x_bi[:, : self.state_stop].reshape(batch, self.states, self.levels)
        scalars_bcl = x_bi[:, self.state_stop : self.gases_start].unsqueeze(2).expand(-1, -1, self.levels)
        gases_bcl = x_bi[:, self.gases_start : self.gases_stop].reshape(batch, self.gases, self.levels)
        features_bcl = x_bi[:, self.gases_stop :].reshape(batch, self.features, self.levels)
        groups = [state_bcl, gases_bcl, scalars_bcl]
        groups.insert(self.features_at, features_bcl)
        return torch.cat(groups, dim=1).transpose(1, 2)


class Head(nn.Module):
    """What ``build`` makes, as a network's end: ``h`` to ``(B, 368)``, in the type of its own weights even where autocast lowers ``h``.

    With ``confidence`` there are two of them, alike in shape: in training the second follows the first, ``(B, 736)``, and learns to
    predict the first one's losses (FACTS section 5, conf); in evaluation the first is alone.
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
