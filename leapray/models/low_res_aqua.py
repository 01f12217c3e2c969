"""The base network for low-res and aqua-planet data: an autoencoder beside the column, a wide BiLSTM and a BiGRU (FACTS section 4a).

Letters after an underscore name a tensor's axes: b batch, i inputs, l levels (60, the model top first), c channels, h hidden.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from leapray.climsim.schema import GASES, INPUTS, LEVELS, STATE, TARGETS
from leapray.models.layers import FullPrecision, perceptron
from leapray.registry import Options


class LowResAquaOptions(Options):
    """Sizes of the network; the defaults are the original's, 18 525 030 parameters."""

    encoder: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (375, 200, 100)
    """Widths of the encoder down to the code; the decoder mirrors them."""
    lstm_hidden: PositiveInt = 512
    lstm_layers: PositiveInt = 3
    gru_hidden: PositiveInt = 16
    head: PositiveInt = 960
    dropout: float = Field(0.09, ge=0, lt=1)
    """Between the layers of the LSTM."""
    features_at: Literal["first", "after-state", "last"] = "after-state"
    """Place of the engineered features among a level's channels; the original took the first two (FACTS section 4c)."""


class LowResAqua(nn.Module):
    """Scaled inputs ``(B, 556 + 60 * features)`` to scaled targets ``(B, 368)``.

    The column is seen as 60 levels of 25 channels: 6 state profiles, 3 gas profiles, 16 scalars repeated, and one more for each
    engineered feature, where ``features_at`` puts it. An autoencoder of the whole column gives as many channels again, so that each
    level of the recurrent layers knows the column's summary from the start.
    """

    def __init__(self, options: LowResAquaOptions, features: int = 0) -> None:
        super().__init__()
        self.levels, self.states, self.gases, self.features = LEVELS, len(STATE), len(GASES), features
        self.features_at = {"first": 0, "after-state": 1, "last": 3}[options.features_at]
        self.state_stop = INPUTS[STATE[-1].name].stop
        self.gases_start = INPUTS[GASES[0].name].start
        self.gases_stop = INPUTS[GASES[-1].name].stop
        channels = len(INPUTS.profiles) + len(INPUTS.scalars) + features
        column = LEVELS * channels
        encoder = (column, *options.encoder)
        self.autoencoder = perceptron((*encoder, *reversed(encoder[:-1])))
        self.lstm = nn.LSTM(
            2 * channels,
            options.lstm_hidden,
            options.lstm_layers,
            batch_first=True,
            dropout=options.dropout if options.lstm_layers > 1 else 0.0,
            bidirectional=True,
        )
        self.gru = nn.GRU(2 * options.lstm_hidden, options.gru_hidden, batch_first=True, bidirectional=True)
        self.head = FullPrecision(perceptron((LEVELS * 2 * options.gru_hidden, options.head, TARGETS.width)))

    def channels(self, x_bi: Tensor) -> Tensor:
        """The flat columns as ``(B, 60, C)``: state profiles, gas profiles, scalars, and the features in their place."""
        batch = x_bi.shape[0]
        state_bcl = x_bi[:, : self.state_stop].reshape(batch, self.states, self.levels)
        scalars_bcl = x_bi[:, self.state_stop : self.gases_start].unsqueeze(2).expand(-1, -1, self.levels)
        gases_bcl = x_bi[:, self.gases_start : self.gases_stop].reshape(batch, self.gases, self.levels)
        features_bcl = x_bi[:, self.gases_stop :].reshape(batch, self.features, self.levels)
        groups = [state_bcl, gases_bcl, scalars_bcl]
        groups.insert(self.features_at, features_bcl)
        return torch.cat(groups, dim=1).transpose(1, 2)

    def forward(self, x_bi: Tensor) -> Tensor:
        x_blc = self.channels(x_bi)
        summary_blc = self.autoencoder(x_blc.flatten(1)).view(x_blc.shape)
        h_blh, _ = self.lstm(torch.cat([x_blc, summary_blc], dim=2))
        h_blh, _ = self.gru(h_blh)
        return self.head(h_blh.flatten(1))
