"""The base network for low-res and aqua-planet data: an autoencoder beside the column, a wide BiLSTM and a BiGRU.

Letters after an underscore name a tensor's axes: b batch, i inputs, t targets, l levels (the model top first), c channels, h hidden.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from leapray.climsim.schema import Channels
from leapray.models.layers import Activation, FeaturesAt, Head, LevelChannels, perceptron
from leapray.registry import Options

_ENCODER_PER_CHANNEL = (15, 8, 4)


class LowResAquaOptions(Options):
    """Sizes of the network; the defaults are the original's base, 18 525 030 parameters."""

    encoder: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Widths of the encoder down to the code; the decoder mirrors them. By default 15, 8 and 4 per channel, 375, 200 and 100 without
    features, as in the original."""
    lstm_hidden: PositiveInt = 512
    lstm_layers: PositiveInt = 3
    gru_hidden: PositiveInt = 16
    head: tuple[PositiveInt, ...] = (960,)
    """Hidden widths of the head; none leaves a single linear layer, as the original's model with features has it."""
    activation: Activation = "relu"
    """Between the layers of the encoder, of the decoder and of the head, and at the end of none."""
    dropout: float = Field(0.09, ge=0, lt=1)
    """Between the layers of the LSTM."""
    confidence: bool = False
    """Also predict the loss of each target, in training only."""
    features_at: FeaturesAt = "after-state"
    """Place of the engineered features among a level's channels; the original took the first two."""


class LowResAqua(nn.Module):
    """Scaled inputs ``(b, i)`` to scaled targets ``(b, t)``, or ``(b, 2 t)`` with confidence in training.

    The column is seen as levels of channels: one for each variable and engineered feature. An autoencoder of the whole column gives
    as many channels again, so that each level of the recurrent layers knows the column's summary from the start. The recurrent layers
    start as PyTorch's do, and so does a head of one layer; perceptrons start Xavier-uniform. All of it is the original's.
    """

    recurrent = True

    def __init__(self, options: LowResAquaOptions, channels: Channels) -> None:
        super().__init__()
        self.channels = LevelChannels(channels, options.features_at)
        count, levels, targets = self.channels.count, channels.inputs.levels, channels.targets.width
        encoder = (levels * count, *(options.encoder or [width * count for width in _ENCODER_PER_CHANNEL]))
        # two perceptrons, so that nothing bends the code between them
        self.encoder = perceptron(encoder, options.activation)
        self.decoder = perceptron(encoder[::-1], options.activation)
        self.lstm = nn.LSTM(
            2 * count,
            options.lstm_hidden,
            options.lstm_layers,
            batch_first=True,
            dropout=options.dropout if options.lstm_layers > 1 else 0.0,
            bidirectional=True,
        )
        self.gru = nn.GRU(2 * options.lstm_hidden, options.gru_hidden, batch_first=True, bidirectional=True)
        column = levels * 2 * options.gru_hidden

        def head() -> nn.Module:
            if not options.head:
                return nn.Linear(column, targets)
            return perceptron((column, *options.head, targets), options.activation)

        self.head = Head(head, options.confidence)

    def forward(self, x_bi: Tensor) -> Tensor:
        x_blc = self.channels(x_bi)
        summary_blc = self.decoder(self.encoder(x_blc.flatten(1))).view(x_blc.shape)
        h_blh, _ = self.lstm(torch.cat([x_blc, summary_blc], dim=2))
        h_blh, _ = self.gru(h_blh)
        return self.head(h_blh.flatten(1))
