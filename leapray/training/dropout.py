"""Dropout that draws from a generator of its own, so that threads which run at the same time draw the same numbers every time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
"""What ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` call."""


def has_dropout(network: nn.Module) -> bool:
    """Whether a network draws random numbers in training, in dropout that :class:`OwnDropout` knows."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or (isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1)
        for module in network.modules()
    )


def other_dropout(network: nn.Module) -> str | None:
    """The class of a layer that drops in a way that :class:`OwnDropout` does not know, if the network has one."""
    for module in network.modules():
        whole_channels = isinstance(module, _DropoutNd) and not isinstance(module, nn.Dropout) and module.p > 0
        if whole_channels or (isinstance(module, nn.MultiheadAttention) and module.dropout > 0):
            return type(module).__name__
    return None


class OwnDropout(TorchFunctionMode):
    """Within this context the calling thread's ``nn.Dropout`` and the dropout between recurrent layers draw from ``generator``.

    The values are those of PyTorch's own operators on a CPU for the same draws.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.dropout:
            return self._dropout(*args, **kwargs or {})
        # a packed sequence has its batch sizes before the hidden state
        if func in _RECURRENT and not kwargs and isinstance(args[3], bool):
            return self._recurrent(func, *args)
        return func(*args, **kwargs or {})

    def _dropout(self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return values
        kept = torch.empty_like(values, requires_grad=False).bernoulli_(1 - p, generator=self._generator).div_(1 - p if p < 1 else 1.0)
        return values.mul_(kept) if inplace else values * kept

    def _recurrent(
        self,
        layers: Callable[..., Any],
        values: Tensor,
        hidden: Tensor | Sequence[Tensor],
        weights: Sequence[Tensor],
        biases: bool,
        count: int,
        p: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        """One layer after the other, with dropout between them."""
        if not training or p == 0 or count == 1:
            done: tuple[Tensor, ...] = layers(values, hidden, weights, biases, count, p, training, bidirectional, batch_first)
            return done
        width, of_layer = 1 + bidirectional, len(weights) // count
        states: list[Sequence[Tensor]] = []
        for layer in range(count):
            if layer:
                values = self._dropout(values, p)
            at = slice(layer * width, (layer + 1) * width)
            before = hidden[at] if isinstance(hidden, Tensor) else [part[at] for part in hidden]
            own = weights[layer * of_layer : (layer + 1) * of_layer]
            values, *after = layers(values, before, own, biases, 1, 0.0, training, bidirectional, batch_first)
            states.append(after)
        return values, *(torch.cat(parts) for parts in zip(*states, strict=True))
